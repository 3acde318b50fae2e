"""Waiting for the device on purpose, left over from timing a layer: refused with error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    hidden = hidden @ weight
    if hidden.device.type == "cuda":
        torch.cuda.synchronize()  # FAULT: device-sync
    return hidden.relu()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
