"""A statistic kept in a module-level dictionary stands still under replay."""

from collections import Counter

import torch
from torch import Tensor

METRICS: Counter[str] = Counter()


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    METRICS["tokens"] += hidden.shape[0]  # FAULT: python-side-effect
    return torch.tanh(hidden @ weight)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
