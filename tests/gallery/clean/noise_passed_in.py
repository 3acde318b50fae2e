"""The noise is an input: drawn outside, from each request's own generator."""

import torch
from torch import Tensor


def step(logits: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
    return (logits / temperature[:, None] - noise.log()).argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    noise = torch.empty(batch_size, 32).exponential_()
    return torch.randn(batch_size, 32), noise, torch.full((batch_size,), 0.7 + 0.1 * variant)
