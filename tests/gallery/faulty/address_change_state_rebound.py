"""A recurrent state is bound to a new tensor in each step: every replay starts from the state before the capture."""

import torch
from torch import Tensor


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(8))
        self.register_buffer("decay", torch.full((8,), 0.9))

    def forward(self, hidden: Tensor) -> Tensor:
        self.state = self.decay * self.state + hidden.mean(0)  # FAULT: address-change
        return hidden + self.state


step = Recurrent()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
