"""Sizes 0 and 1 are constants to the compiler: the first lone request pays a compilation of its own (vllm#38933)."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:  # FAULT: recompile (either)
    hidden = hidden @ weight  # FAULT: recompile (either)
    return hidden.softmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
