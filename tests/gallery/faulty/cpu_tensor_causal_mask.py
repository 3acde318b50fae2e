"""The mask is made on the host: ``masked_fill`` raises on a GPU."""

import torch
from torch import Tensor


def step(scores: Tensor) -> Tensor:
    size = scores.shape[-1]
    mask = torch.ones(size, size, dtype=torch.bool).triu(1)
    return scores.masked_fill(mask, float("-inf")).softmax(-1)  # FAULT: cpu-tensor


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 6, 6),)
