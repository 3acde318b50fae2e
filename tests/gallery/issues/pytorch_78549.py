"""pytorch#78549: synchronised batch norm drops the ranks without data by a boolean index: capture refused.

Seen: "operation not permitted when stream is capturing" for models that had been captured by the release before.
"""

import torch
from torch import Tensor


def step(hidden: Tensor, mean_all: Tensor, count_all: Tensor) -> Tensor:
    mask = count_all >= 1
    count_all = count_all[mask]  # FAULT: data-dependent-shape
    mean_all = mean_all[mask]  # FAULT: data-dependent-shape
    mean = (mean_all * count_all[:, None]).sum(0) / count_all.sum()
    return hidden - mean


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    counts = torch.tensor([float((rank + variant) % 3) for rank in range(4)])
    return torch.randn(batch_size, 8), torch.randn(4, 8), counts
