"""Experts choose the tokens they like best, among them padding: it takes the places of real tokens."""

import torch
from torch import Tensor

EXPERTS = torch.randn(4, 8, 8)


def step(hidden: Tensor, router: Tensor) -> Tensor:
    affinity = (hidden @ router).sigmoid()
    threshold = affinity.topk(max(1, hidden.shape[0] // 4), dim=0).values[-1]  # FAULT: padding-leak
    chosen = torch.where(affinity >= threshold, affinity, 0.0)
    return torch.einsum("be,bh,ehi->bi", chosen, hidden, EXPERTS)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 4)
