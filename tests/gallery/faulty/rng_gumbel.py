"""Gumbel noise drawn in the step: what a replay gives depends on how the generator was registered (pytorch#84614)."""

import torch
from torch import Tensor


def step(logits: Tensor) -> Tensor:
    uniform = torch.rand(logits.shape, device=logits.device)  # FAULT: rng
    return (logits - torch.log(-torch.log(uniform + 1e-9) + 1e-9)).argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 32),)
