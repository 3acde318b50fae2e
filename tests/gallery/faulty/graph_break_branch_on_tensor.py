"""A branch on a tensor's value: the compiler cannot know which way, so the graph ends."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    hidden = hidden @ weight
    if hidden.abs().max() > 1e4:  # FAULT: graph-break
        hidden = hidden.clamp(-1e4, 1e4)
    return hidden.relu()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
