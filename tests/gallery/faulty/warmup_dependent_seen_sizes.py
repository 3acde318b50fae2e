"""Each batch size is set up when it is first seen: the set-up is in the graph or not, depending on the warm-ups."""

import torch
from torch import Tensor

SEEN: set[int] = set()
CACHE = torch.ones(8, 8)


def step(hidden: Tensor) -> Tensor:
    rows = hidden.shape[0]
    if rows not in SEEN:  # FAULT: warmup-dependent (either)
        SEEN.add(rows)
        CACHE[:rows].zero_()  # FAULT: warmup-dependent (either)
    CACHE[:rows].add_(hidden)
    return CACHE[:rows] * 2


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
