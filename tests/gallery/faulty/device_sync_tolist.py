"""``.tolist()`` of device lengths waits for the device: error 900 (sglang#29413 removed one from a captured path)."""

import torch
from torch import Tensor


def step(tokens: Tensor, context_lens: Tensor) -> Tensor:
    rows = []
    for row, length in enumerate(context_lens.tolist()):  # FAULT: device-sync
        rows.append(tokens[row, :length].sum(0))
    return torch.stack(rows)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    lens = torch.tensor([3 + row % 4 + 2 * variant for row in range(batch_size)])
    return torch.randn(batch_size, 16, 8), lens
