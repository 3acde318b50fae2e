"""Tokens per expert counted by ``scatter_add_``: a fixed shape, where ``bincount`` would wait."""

import torch
from torch import Tensor


def step(hidden: Tensor, experts: Tensor) -> Tensor:
    counts = torch.zeros(hidden.shape[0], 4, device=hidden.device)
    counts.scatter_add_(1, experts, torch.ones_like(experts, dtype=counts.dtype))
    return hidden * counts


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 4), torch.randint(0, 4, (batch_size, 3))
