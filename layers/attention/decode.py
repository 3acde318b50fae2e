"""Attention of one new token per row over its pages, in plain ATen operations: compiled, captured or emulated alike.

Knows nothing of requests. Every shape depends on the number of rows and the width of the block table only, so a graph
of it can be replayed for any lengths within that width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.layers.forms import prefers_sums


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """``softmax(scale * q k^T) v`` of each row over its first ``context_lens`` cached tokens.

    q ``[rows, num_heads, head_dim]``; caches ``[num_blocks, block_size, num_kv_heads, head_dim]``; block_table
    ``[rows, width] int32``; context_lens ``[rows] int32``. Returns ``[rows, num_heads, head_dim]`` in ``q.dtype``;
    scores and sums are fp32. Keys and values behind ``context_lens`` are masked before use: NaN there is harmless.
    """
    rows, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    keys = k_cache[block_table]  # [rows, width, block_size, num_kv_heads, head_dim]
    values = v_cache[block_table]
    grouped = q.view(rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    positions = torch.arange(block_table.shape[1] * block_size, device=q.device)
    visible = (positions[None, :] < context_lens[:, None]).view(rows, -1, block_size)
    attend = _attend_by_sums if prefers_sums(q) else _attend_by_products
    return attend(grouped, keys, values, visible, scale).reshape(rows, num_heads, head_dim).to(q.dtype)


def _attend_by_sums(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float) -> Tensor:
    """The compiled single-row form: two reductions that Inductor fuses with the page gather."""
    scores = (q.float()[:, None, None] * keys.float().unsqueeze(-2)).sum(-1) * scale  # [rows, width, block, kv, group]
    scores = scores.masked_fill(~visible[..., None, None], float("-inf"))
    weights = (scores - scores.amax((1, 2), keepdim=True)).exp()
    total = weights.sum((1, 2))
    seen = torch.where(visible[..., None, None], values.float(), 0.0)
    return (weights.unsqueeze(-1) * seen.unsqueeze(-2)).sum((1, 2)) / total.unsqueeze(-1)


def _attend_by_products(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float) -> Tensor:
    """The general form: two batched matrix products over gathered pages."""
    hidden = ~visible.flatten(1)  # [rows, tokens]
    keys = keys.flatten(1, 2).transpose(1, 2)  # [rows, kv, tokens, head_dim]
    values = values.flatten(1, 2).transpose(1, 2).masked_fill(hidden[:, None, :, None], 0.0)
    scores = torch.matmul(q, keys.transpose(-1, -2)).float() * scale  # [rows, kv, group, tokens]
    weights = torch.softmax(scores.masked_fill(hidden[:, None, None, :], float("-inf")), dim=-1)
    return torch.matmul(weights.to(values.dtype), values)
