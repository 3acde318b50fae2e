"""``.item()`` for every row: each one waits for the device, and the capture is refused with error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
    out = torch.empty_like(hidden)
    for row in range(hidden.shape[0]):
        out[row] = cache[row, positions[row].item()] + hidden[row]  # FAULT: device-sync
    return out


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    positions = torch.tensor([(row + 2 * variant) % 16 for row in range(batch_size)])
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), positions
