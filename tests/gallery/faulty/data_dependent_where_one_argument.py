"""``torch.where`` with the condition alone is ``nonzero``: error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, is_new: Tensor, table: Tensor) -> Tensor:
    rows = torch.where(is_new)[0]  # FAULT: data-dependent-shape
    return hidden.index_add(0, rows, table.index_select(0, rows))


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    is_new = (torch.arange(batch_size) + variant) % 2 == 0
    return torch.randn(batch_size, 8), is_new, torch.randn(batch_size, 8)
