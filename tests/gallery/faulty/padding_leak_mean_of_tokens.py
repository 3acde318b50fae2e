"""The mean activation steers all rows, and is taken over the padding too."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    hidden = torch.tanh(hidden @ weight)
    context = hidden.sum(0) / hidden.shape[0]  # FAULT: padding-leak
    return hidden + context


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
