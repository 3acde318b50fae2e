"""``nonzero`` has as many rows as there are hits, so the host waits for the count: error 900 (torchtitan#4156)."""

import torch
from torch import Tensor


def step(hidden: Tensor, active: Tensor) -> Tensor:
    rows = torch.nonzero(active).squeeze(-1)  # FAULT: data-dependent-shape
    return hidden.index_select(0, rows).mean(0)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), (torch.arange(batch_size) + variant) % 2 == 0
