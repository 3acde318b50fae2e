"""Kernels are built for each width when they are first needed, as a JIT does (vllm#43009): 901 inside of a capture."""

from collections.abc import Callable

import torch
from torch import Tensor

KERNELS: dict[int, Callable[[Tensor], Tensor]] = {}


def build(width: int) -> Callable[[Tensor], Tensor]:
    def kernel(keys: Tensor) -> Tensor:
        return keys[:, :width].sum(1)

    return torch.compile(kernel, backend="eager", dynamic=False)  # FAULT: late-compile (either)


def step(keys: Tensor, max_len: int) -> Tensor:
    width = -(-max_len // 8) * 8
    if width not in KERNELS:
        KERNELS[width] = build(width)
    return KERNELS[width](keys)  # FAULT: late-compile (either)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32, 8), 5 + 8 * variant
