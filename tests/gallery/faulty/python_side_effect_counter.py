"""A step counter in Python counts captures, not replays."""

import torch
from torch import Tensor


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.register_buffer("weight", torch.randn(8, 8))

    def forward(self, hidden: Tensor) -> Tensor:
        self.steps += 1  # FAULT: python-side-effect
        return hidden @ self.weight


step = Model()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
