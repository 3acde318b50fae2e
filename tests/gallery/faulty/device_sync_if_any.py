"""``if tensor:`` asks the device for a value: error 900."""

import torch
from torch import Tensor


def step(logits: Tensor, banned: Tensor) -> Tensor:
    if banned.any():  # FAULT: device-sync
        logits = logits.masked_fill(banned, float("-inf"))
    return logits.argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32), torch.rand(batch_size, 32) < 0.2
