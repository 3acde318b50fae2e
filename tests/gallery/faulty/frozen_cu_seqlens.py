"""Sequence lengths as a Python list cut the packed tokens: replay cuts them where the capture did (torchtitan#3709)."""

import torch
from torch import Tensor


def step(packed: Tensor, lengths: list[int]) -> Tensor:
    parts = torch.split(packed, lengths)  # FAULT: frozen-value
    return torch.stack([part.mean(0) for part in parts])


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, list[int]]:
    torch.manual_seed(variant)
    lengths = [4] * batch_size
    lengths[0] += 1 + variant
    lengths[-1] -= 1 + variant
    return torch.randn(4 * batch_size, 8), lengths
