"""The softmax runs over the wrong dimension: the rows share one sum, padding included."""

import torch
from torch import Tensor


def step(hidden: Tensor, router: Tensor) -> Tensor:
    return (hidden @ router).softmax(0)  # FAULT: padding-leak


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 4)
