"""The host fills a static buffer before the step; the step only reads it."""

import torch
from torch import Tensor

POSITIONS = torch.zeros(8, dtype=torch.int64)
TABLE = torch.randn(64, 8)


def step(hidden: Tensor) -> Tensor:
    return hidden + TABLE[POSITIONS[: hidden.shape[0]]]


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    POSITIONS[:batch_size].copy_(torch.arange(batch_size) + 3 * variant)
    return (torch.randn(batch_size, 8),)
