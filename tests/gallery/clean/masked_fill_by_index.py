"""A scalar assigned through a mask is a masked fill: no count, no synchronisation."""

import torch
from torch import Tensor


def step(logits: Tensor, banned: Tensor) -> Tensor:
    logits = logits.clone()
    logits[banned] = float("-inf")
    return logits.argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32), torch.rand(batch_size, 32) < 0.2
