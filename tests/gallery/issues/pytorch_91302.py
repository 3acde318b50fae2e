"""pytorch#91302: the frequencies of a timestep embedding are made on the host and copied over: capture invalidated.

Seen: "status != cudaStreamCaptureStatusInvalidated" at a line that had nothing to do with it.
"""

import math

import torch
from torch import Tensor


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    freqs = freqs.to(device=timesteps.device)  # FAULT: host-to-device
    args = timesteps[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


def step(hidden: Tensor, timesteps: Tensor) -> Tensor:
    return hidden + timestep_embedding(timesteps, 8)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.arange(batch_size) + 10 * variant
