"""torchtitan#4156: document boundaries by ``nonzero`` and the longest by ``.item()``, in a model meant for a graph.

Seen: no graphs for packed documents until both were replaced, by a cumulative sum and a constant bound.
"""

import torch
from torch import Tensor


def document_bounds(positions: Tensor) -> tuple[Tensor, int]:
    starts = (positions == 0).nonzero().flatten()  # FAULT: data-dependent-shape
    bounds = torch.cat([starts, starts.new_full((1,), positions.numel())])
    longest = bounds.diff().max().item()  # FAULT: device-sync
    return bounds, longest


def step(hidden: Tensor, positions: Tensor) -> Tensor:
    bounds, longest = document_bounds(positions)
    return hidden * longest / bounds[-1]


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(4 * batch_size, 8), torch.arange(4 * batch_size) % (4 if variant == 0 else 2)
