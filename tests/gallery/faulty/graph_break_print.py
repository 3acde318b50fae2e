"""A print inside of a compiled step: two graphs and Python between them, in every step."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    hidden = hidden @ weight
    print("attention done", hidden.shape)  # FAULT: graph-break
    return hidden.relu()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
