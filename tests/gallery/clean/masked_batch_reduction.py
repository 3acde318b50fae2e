"""A reduction over the batch that leaves the padding out by ``where``, so not even NaN gets through."""

import torch
from torch import Tensor


def step(hidden: Tensor, num_rows: Tensor) -> Tensor:
    real = torch.arange(hidden.shape[0], device=hidden.device) < num_rows
    scale = torch.where(real[:, None], hidden.abs(), 0.0).amax().clamp(min=1e-6) / 127
    return (hidden / scale).round().clamp(-127, 127) * scale


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.tensor((batch_size + 1) // 2)
