"""``bincount`` reads the largest value even with ``minlength``: error 900. ``scatter_add_`` does not."""

import torch
from torch import Tensor


def step(hidden: Tensor, experts: Tensor) -> Tensor:
    load = torch.bincount(experts, minlength=4)  # FAULT: data-dependent-shape
    return hidden / load[experts].unsqueeze(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randint(0, 4, (batch_size,))
