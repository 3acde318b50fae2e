"""A step counter as a tensor: it counts replays too."""

import torch
from torch import Tensor


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("weight", torch.randn(8, 8))

    def forward(self, hidden: Tensor) -> Tensor:
        self.steps += 1
        return hidden @ self.weight * (1.0 / self.steps)


step = Model()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
