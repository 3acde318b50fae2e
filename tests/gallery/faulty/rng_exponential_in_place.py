"""The exponential race avoids multinomial's synchronisation; its noise still comes from the device's generator."""

import torch
from torch import Tensor


def step(logits: Tensor) -> Tensor:
    probabilities = logits.softmax(-1)
    noise = torch.empty_like(probabilities).exponential_(1)  # FAULT: rng
    return (probabilities / noise).argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 32),)
