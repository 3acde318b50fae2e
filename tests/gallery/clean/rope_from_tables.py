"""Rotary embedding from tables that were made once, indexed by device positions."""

import torch
from torch import Tensor

_ANGLES = torch.arange(64.0)[:, None] * 10000.0 ** -torch.linspace(0, 1, 4)
COS, SIN = _ANGLES.cos(), _ANGLES.sin()


def step(query: Tensor, positions: Tensor) -> Tensor:
    cos, sin = COS[positions], SIN[positions]
    first, second = query.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.arange(batch_size) + 5 * variant
