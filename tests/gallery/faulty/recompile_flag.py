"""A Python flag for greedy requests: each value of it is a compilation of its own."""

import torch
from torch import Tensor


def step(logits: Tensor, noise: Tensor, greedy: bool) -> Tensor:  # FAULT: recompile (either)
    if not greedy:  # FAULT: recompile (either)
        logits = logits + noise
    return logits.argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, bool]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32), torch.randn(batch_size, 32), variant % 2 == 0
