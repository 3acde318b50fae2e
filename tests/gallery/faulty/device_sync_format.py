"""An f-string formats the tensor's value, so it waits for the device, even if nobody reads the text: error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> tuple[Tensor, str]:
    hidden = hidden @ weight
    peak = hidden.abs().max()
    note = f"peak {peak:.3f}"  # FAULT: device-sync
    return hidden, note


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
