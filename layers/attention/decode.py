"""Attention of one new token per row over its pages, in plain ATen operations: compiled, captured or emulated alike.

Knows nothing of requests. Every shape depends on the number of rows and the width of the block table only, so a graph
of it can be replayed for any lengths within that width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.layers.attention.scoring import Scoring, capped
from ostinato.layers.forms import prefers_sums


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scoring: Scoring,
    table_start: Tensor | None = None,
) -> Tensor:
    """Each row's attention over its first ``context_lens`` cached tokens, the last of which is its own.

    q ``[rows, num_heads, head_dim]``; caches ``[num_blocks, block_size, num_kv_heads, head_dim]``; block_table ``[rows,
    width] int32``; context_lens ``[rows] int32``. Returns ``[rows, num_heads, head_dim]`` in ``q.dtype``; scores and
    sums are fp32. ``table_start [rows]``: which block of its row the first cell is (None: the first). Keys and values
    that a row may not see are masked before use: NaN there is harmless.
    """
    rows, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    keys = k_cache[block_table]  # [rows, width, block_size, num_kv_heads, head_dim]
    values = v_cache[block_table]
    grouped = q.view(rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    last = context_lens - 1 if table_start is None else context_lens - 1 - table_start * block_size
    positions = torch.arange(block_table.shape[1] * block_size, device=q.device)
    distance = (positions[None, :] - last[:, None]).view(rows, -1, block_size)  # 0 at the row's own token
    visible = distance <= 0
    if scoring.window:
        visible = visible & (distance > -scoring.window)
    attend = _attend_by_sums if prefers_sums(q) else _attend_by_products
    return attend(grouped, keys, values, distance, visible, scoring).reshape(rows, num_heads, head_dim).to(q.dtype)


def _attend_by_sums(
    q: Tensor, keys: Tensor, values: Tensor, distance: Tensor, visible: Tensor, scoring: Scoring
) -> Tensor:
    """The compiled single-row form: two reductions that Inductor fuses with the page gather."""
    heads = q.shape[1:3]
    scores = (q.float()[:, None, None] * keys.float().unsqueeze(-2)).sum(-1) * scoring.scale
    scores = capped(scores, scoring.softcap)  # [rows, width, block, kv, group]
    if scoring.slopes is not None:
        scores = scores + scoring.slopes.view(heads) * distance[..., None, None]
    scores = scores.masked_fill(~visible[..., None, None], float("-inf"))
    highest = scores.amax((1, 2), keepdim=True)
    if scoring.sinks is not None:
        highest = torch.maximum(highest, scoring.sinks.float().view(heads))
    weights = (scores - highest).exp()
    total = weights.sum((1, 2))
    if scoring.sinks is not None:
        total = total + (scoring.sinks.float().view(heads) - highest[:, 0, 0]).exp()
    seen = torch.where(visible[..., None, None], values.float(), 0.0)
    return (weights.unsqueeze(-1) * seen.unsqueeze(-2)).sum((1, 2)) / total.unsqueeze(-1)


def _attend_by_products(
    q: Tensor, keys: Tensor, values: Tensor, distance: Tensor, visible: Tensor, scoring: Scoring
) -> Tensor:
    """The general form: two batched matrix products over gathered pages."""
    hidden = ~visible.flatten(1)  # [rows, tokens]
    keys = keys.flatten(1, 2).transpose(1, 2)  # [rows, kv, tokens, head_dim]
    values = values.flatten(1, 2).transpose(1, 2).masked_fill(hidden[:, None, :, None], 0.0)
    scores = torch.matmul(q, keys.transpose(-1, -2)).float() * scoring.scale  # [rows, kv, group, tokens]
    scores = capped(scores, scoring.softcap)
    if scoring.slopes is not None:
        scores = scores + scoring.slopes.view(*q.shape[1:3], 1) * distance.flatten(1)[:, None, None, :]
    scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
    weights = softmax_with_sinks(scores, scoring.sinks)
    return torch.matmul(weights.to(values.dtype), values)


def softmax_with_sinks(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax of ``scores [rows, kv, group, tokens]``, each head's sink among them and then left out."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    sink = sinks.float().view(*scores.shape[1:3], 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]
