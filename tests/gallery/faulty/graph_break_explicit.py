"""A break that was put there to get a bug out of the way, and forgotten."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    hidden = torch.tanh(hidden @ weight)
    torch._dynamo.graph_break()  # FAULT: graph-break
    return hidden @ weight.t()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
