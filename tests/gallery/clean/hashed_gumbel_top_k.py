"""Sampling whose noise is a hash of seed, position and token: any replay, any batch, the same numbers."""

import torch
from torch import Tensor


def step(logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    values, tokens = logits.topk(8, -1)
    mixed = (seeds * 1000003 + positions)[:, None] * 7919 + tokens * 104729
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 % 2147483647
    uniform = (mixed.abs().to(logits.dtype) + 1.0) / 2147483648.0
    choice = (values - torch.log(-torch.log(uniform))).argmax(-1, keepdim=True)
    return tokens.gather(1, choice).squeeze(1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    seeds = torch.arange(batch_size) * 17 + 1
    return torch.randn(batch_size, 32), seeds, torch.arange(batch_size) + variant
