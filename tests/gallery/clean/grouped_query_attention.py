"""Grouped-query attention over a static cache with a mask from device lengths."""

import torch
import torch.nn.functional as F
from torch import Tensor


def step(query: Tensor, keys: Tensor, values: Tensor, context_lens: Tensor) -> Tensor:
    inside = torch.arange(keys.shape[2], device=keys.device) < context_lens[:, None]
    keys = keys.repeat_interleave(2, dim=1)
    values = torch.where(inside[:, None, :, None], values, 0.0).repeat_interleave(2, dim=1)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=inside[:, None, None, :])


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    lens = torch.tensor([3 + (row + 2 * variant) % 8 for row in range(batch_size)])
    cache = torch.randn(2, batch_size, 2, 16, 8)
    return torch.randn(batch_size, 4, 1, 8), cache[0], cache[1], lens
