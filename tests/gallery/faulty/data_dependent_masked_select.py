"""``masked_select`` returns as many elements as are true: error 900."""

import torch
from torch import Tensor


def step(logits: Tensor, allowed: Tensor) -> Tensor:
    kept = torch.masked_select(logits, allowed)  # FAULT: data-dependent-shape
    return kept.max()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32), torch.rand(batch_size, 32) < 0.5
