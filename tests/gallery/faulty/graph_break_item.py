"""``.item()`` under torch.compile ends the graph unless scalar outputs are captured."""

import torch
from torch import Tensor


def step(hidden: Tensor, scale: Tensor) -> Tensor:
    factor = scale.item()  # FAULT: graph-break
    return hidden * factor


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.tensor(0.5)
