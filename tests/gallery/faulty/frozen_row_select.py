"""A Python int picks the adapter: all replays use the adapter of the capture."""

import torch
from torch import Tensor

ADAPTERS = torch.randn(8, 8, 8)


def step(hidden: Tensor, adapter: int) -> Tensor:
    return hidden + hidden @ ADAPTERS[adapter]  # FAULT: frozen-value


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), 2 + variant
