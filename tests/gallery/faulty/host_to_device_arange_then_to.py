"""A table is computed on the host and copied over in each step: "capture invalidated", error 901 (pytorch#91302)."""

import torch
from torch import Tensor


def step(timesteps: Tensor) -> Tensor:
    freqs = torch.exp(-torch.arange(4) / 4.0)
    angles = timesteps[:, None] * freqs.to(timesteps.device)  # FAULT: host-to-device
    return torch.cat([angles.cos(), angles.sin()], -1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    return (torch.arange(batch_size) + 1.0 + variant,)
