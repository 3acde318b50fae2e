"""A progress message appears once, when the step is captured, and never again."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    print("decoding", hidden.shape[0], "rows")  # FAULT: python-side-effect
    return torch.tanh(hidden @ weight)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
