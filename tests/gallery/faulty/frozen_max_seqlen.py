"""The longest row bounds the keys: replay reads as many as at capture, and longer rows lose their end."""

import torch
from torch import Tensor


def step(query: Tensor, keys: Tensor, context_lens: Tensor, max_seqlen: int) -> Tensor:
    keys = keys[:, :max_seqlen]  # FAULT: frozen-value
    past = torch.arange(keys.shape[1], device=keys.device) >= context_lens[:, None]
    scores = torch.einsum("bh,bth->bt", query, keys).masked_fill(past, float("-inf"))
    return torch.einsum("bt,bth->bh", scores.softmax(-1), keys)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    torch.manual_seed(variant)
    lens = [3 + row % 4 + 2 * variant for row in range(batch_size)]
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), torch.tensor(lens), max(lens)
