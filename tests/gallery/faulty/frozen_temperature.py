"""A Python float is a kernel argument: all requests are sampled at the temperature of the capture."""

import torch
from torch import Tensor


def step(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    scaled = logits / temperature  # FAULT: frozen-value
    return (scaled + noise).argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, float]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32), torch.randn(batch_size, 32), 0.7 + 0.2 * variant
