"""``torch.full`` with a Python step number: the fill is captured with the number of that step."""

import torch
from torch import Tensor


def step(table: Tensor, hidden: Tensor, decode_step: int) -> Tensor:
    positions = torch.full((hidden.shape[0],), decode_step, device=hidden.device)  # FAULT: frozen-value
    return hidden + table[positions]


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(64, 8), torch.randn(batch_size, 8), 5 + variant
