"""A clock inside of a compiled step cannot be traced: the graph ends at each reading."""

import time

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    hidden = hidden @ weight
    now = time.perf_counter()  # FAULT: graph-break
    return hidden.relu(), now


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
