"""Pinned and asynchronous, so it is captured; each replay then reads a block that was recycled (onnxruntime#32121)."""

import torch
from torch import Tensor


def step(keys: Tensor, lengths: list[int]) -> Tensor:
    staging = torch.tensor(lengths, pin_memory=torch.cuda.is_available())
    lens = staging.to(keys.device, non_blocking=True)  # FAULT: host-to-device
    past = torch.arange(keys.shape[1], device=keys.device) >= lens[:, None]
    return keys.masked_fill(past[..., None], 0.0).sum(1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, list[int]]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 16, 8), [3 + row % 4 + 2 * variant for row in range(batch_size)]
