"""A tensor without dimensions may stay on the host: its value goes into the kernel's arguments and is kept for ever."""

import torch
from torch import Tensor


def step(logits: Tensor, temperature: float) -> Tensor:
    scale = torch.tensor(temperature)
    return (logits / scale).softmax(-1)  # FAULT: cpu-tensor


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, float]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32), 0.5 + 0.25 * variant
