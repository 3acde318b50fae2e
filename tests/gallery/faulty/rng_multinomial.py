"""``multinomial`` moves the generator of the device: a request's own seed cannot reach it inside of a graph."""

import torch
from torch import Tensor


def step(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1).squeeze(-1)  # FAULT: rng


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 32),)
