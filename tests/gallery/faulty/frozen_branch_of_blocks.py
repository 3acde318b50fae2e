"""The long-context path is a branch on a Python length: the capture records one of the two."""

import torch
from torch import Tensor


def step(query: Tensor, keys: Tensor, max_len: int) -> Tensor:
    if max_len > 8:  # FAULT: frozen-value
        query = query * 0.5
        scores = torch.einsum("bh,bth->bt", query, keys)
    else:
        scores = torch.einsum("bh,bth->bt", query, keys)
    return scores.softmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), 6 + 5 * variant
