"""``torch.equal`` returns a Python bool, so the host waits for the device: error 900."""

import torch
from torch import Tensor


def step(tokens: Tensor, previous: Tensor, embedding: Tensor) -> Tensor:
    hidden = embedding[tokens]
    if not torch.equal(tokens, previous):  # FAULT: device-sync
        hidden = hidden * 0.5
    return hidden


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    tokens = torch.arange(batch_size) + variant
    return tokens, torch.arange(batch_size), torch.ones(32, 8)
