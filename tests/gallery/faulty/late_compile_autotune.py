"""Candidates are timed for each new length: timing waits for the device, in a capture error 901 (triton#10596)."""

import time

import torch
from torch import Tensor

BEST: dict[int, int] = {}


def sum_in_parts(keys: Tensor, parts: int) -> Tensor:
    return torch.stack([part.sum(1) for part in keys.chunk(parts, 1)]).sum(0)


def step(keys: Tensor, max_len: int) -> Tensor:
    if max_len not in BEST:  # FAULT: late-compile or warmup-dependent (either)
        times = {}
        for parts in (1, 2, 4):
            start = time.perf_counter()
            sum_in_parts(keys, parts)  # FAULT: late-compile or warmup-dependent (either)
            times[time.perf_counter() - start] = parts
        BEST[max_len] = 2 if times else 1
    return sum_in_parts(keys, BEST[max_len])


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32, 8), 8 + variant
