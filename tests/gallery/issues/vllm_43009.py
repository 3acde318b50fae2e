"""vllm#43009: kernels are specialised on integers that the warm-up did not use, and built while a request waits.

Seen: first requests that waited for Triton, after a warm-up of two minutes.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def zero_blocks(cache: Tensor, num_blocks: int) -> Tensor:
    cache[:num_blocks].zero_()
    return cache.sum((1, 2))


COMPILED: dict[bool, Callable[[Tensor, int], Tensor]] = {}


def step(cache: Tensor, hidden: Tensor, num_blocks: int) -> Tensor:
    divisible = num_blocks % 16 == 0
    if divisible not in COMPILED:
        COMPILED[divisible] = torch.compile(zero_blocks, backend="eager", dynamic=False)  # FAULT: late-compile (either)
    return COMPILED[divisible](cache, num_blocks)[:1] + hidden  # FAULT: late-compile (either)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.ones(64, 4, 8), torch.randn(batch_size, 8), 16 if variant == 0 else 16 + 3 * variant
