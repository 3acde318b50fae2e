"""A module that keeps parameters and buffers where they are."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.register_buffer("gain", torch.full((8,), 0.5))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.gain * self.down(nn.functional.gelu(self.up(self.norm(hidden))))


step = Block().eval().requires_grad_(False)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
