"""Rows of different length are masked with ``where``; an empty row gives zeros, not NaN."""

import torch
from torch import Tensor


def step(scores: Tensor, context_lens: Tensor) -> Tensor:
    inside = torch.arange(scores.shape[1], device=scores.device) < context_lens[:, None]
    peak = torch.where(inside, scores, -1e30).amax(-1, keepdim=True)
    weights = torch.where(inside, (scores - peak).exp(), 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 16), torch.tensor([(3 * row + variant) % 17 for row in range(batch_size)])
