"""A forgotten batch dimension: the rows attend to one another, and to the padding."""

import torch
from torch import Tensor


def step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.t()
    return scores.softmax(-1) @ value  # FAULT: padding-leak


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 8), torch.randn(batch_size, 8)
