"""The batch sizes seen are noted in a list: under replay none is."""

import torch
from torch import Tensor

BATCH_SIZES: list[int] = []


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    BATCH_SIZES.append(hidden.shape[0])  # FAULT: python-side-effect
    return torch.tanh(hidden @ weight)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
