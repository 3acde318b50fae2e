"""A loop until all rows are done asks the device before each turn: error 900, and the turns would be frozen."""

import torch
from torch import Tensor


def step(state: Tensor, targets: Tensor) -> Tensor:
    done = torch.zeros_like(targets, dtype=torch.bool)
    while not done.all():  # FAULT: device-sync
        state = state + 0.5
        done = state.sum(-1) >= targets
    return state


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    return torch.zeros(batch_size, 4), torch.full((batch_size,), 4.0 + 2 * variant)
