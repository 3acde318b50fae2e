"""A NumPy array lies in pageable memory: copying it to the device is refused (error 900)."""

import numpy as np
import torch
from torch import Tensor


def step(hidden: Tensor, table: Tensor, positions: np.ndarray) -> Tensor:
    where = torch.from_numpy(positions).to(hidden.device)  # FAULT: host-to-device
    return hidden + table[where]


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, np.ndarray]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(64, 8), np.arange(batch_size) + 3 * variant
