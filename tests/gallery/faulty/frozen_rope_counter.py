"""The position is counted in Python: every replay rotates by the angle of the capture."""

import torch
from torch import Tensor


class Rotary(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        self.register_buffer("frequencies", 10000.0 ** -torch.linspace(0, 1, 4))

    def forward(self, query: Tensor) -> Tensor:
        angles = self.frequencies * self.position  # FAULT: frozen-value
        self.position += 1  # FAULT: python-side-effect
        first, second = query.chunk(2, -1)
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos()], -1)


step = Rotary()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
