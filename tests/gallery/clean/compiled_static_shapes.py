"""A compiled function whose shapes depend on nothing but the batch size."""

import torch
from torch import Tensor


@torch.compile(fullgraph=True, dynamic=False, backend="eager")
def mlp(hidden: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return torch.relu(hidden @ up) @ down


def step(hidden: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return hidden + mlp(hidden, up, down)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 16), torch.randn(16, 8)
