"""The window starts at a Python position: replay looks at the tokens that it covered at capture."""

import torch
from torch import Tensor

WINDOW = 4


def step(query: Tensor, keys: Tensor, position: int) -> Tensor:
    window = keys[:, position : position + WINDOW]  # FAULT: frozen-value
    return torch.einsum("bh,bth->bt", query, window).softmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), 3 + variant
