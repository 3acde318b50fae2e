"""Two input buffers are used in turn; the graph reads the one whose turn it was at capture."""

import torch
from torch import Tensor


class DoubleBuffered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.buffers = [torch.zeros(8, 8), torch.ones(8, 8)]
        self.turn = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.turn = 1 - self.turn  # FAULT: python-side-effect
        return hidden + self.buffers[self.turn][: hidden.shape[0]]  # FAULT: address-change


step = DoubleBuffered()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
