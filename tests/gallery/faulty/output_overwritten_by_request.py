"""Hidden states are kept by request for a second pass: each replay writes over those of the step before."""

import torch
from torch import Tensor


class Collector(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}

    def forward(self, hidden: Tensor, weight: Tensor, request: int) -> Tensor:
        hidden = torch.tanh(hidden @ weight)
        self.kept[request] = hidden[-1]  # FAULT: output-overwritten
        return hidden.sum(-1)


step = Collector()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8), variant
