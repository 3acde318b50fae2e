"""Attention of steps whose rows have different numbers of new tokens: prompts, chunks, and decode rows among them.

One opaque operator, ``torch.ops.ostinato.varlen_attention``. It reads the pages that an in-place write has just filled
and mutates nothing, which lets it stand inside a nested compile region. Its Python loops over rows, so it is never
captured: steps that use it are launched eagerly. A long row is done in tiles of queries, which bounds its memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ostinato.layers.attention.decode import decode_attention, softmax_with_sinks
from ostinato.layers.attention.scoring import Scoring, capped

TILE_ELEMENTS = 1 << 24
"""Of a tile's mask, or of one head's scores: queries times keys."""


@torch.library.custom_op("ostinato::varlen_attention", mutates_args=())
def varlen_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of each row's new tokens over its whole cached context; the last five are a ``Scoring``.

    q ``[tokens, num_heads, head_dim]``; row ``r`` owns tokens ``cu_seqlens_q[r] : cu_seqlens_q[r + 1]``, the last ones
    of its ``context_lens[r]`` cached tokens. Rows and tokens beyond the step's own have no tokens and return zeros.
    """
    scoring = Scoring(scale, window, softcap, slopes, sinks)
    out = torch.zeros_like(q)
    starts = cu_seqlens_q.tolist()
    lengths = context_lens.tolist()
    spans = [(row, starts[row], starts[row + 1]) for row in range(len(lengths)) if starts[row + 1] > starts[row]]
    single = [(row, start) for row, start, end in spans if end - start == 1]
    if single:
        rows, tokens = (list(column) for column in zip(*single, strict=True))
        width = -(-max(lengths[row] for row in rows) // k_cache.shape[1])
        out[tokens] = decode_attention(
            q[tokens], k_cache, v_cache, block_table[rows, :width], context_lens[rows], scoring
        )
    for row, start, end in spans:
        if end - start > 1:
            out[start:end] = _attend_row(q[start:end], k_cache, v_cache, block_table[row], lengths[row], scoring)
    return out


@varlen_attention.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


def _attend_row(q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, length: int, scoring: Scoring) -> Tensor:
    """One row's new tokens ``q [new, num_heads, head_dim]`` over its ``length`` cached tokens."""
    (new, num_heads), block_size, num_kv_heads = q.shape[:2], k_cache.shape[1], k_cache.shape[2]
    first = max(0, length - new - scoring.window + 1) // block_size * block_size if scoring.window else 0
    blocks = table[first // block_size : -(-length // block_size)]
    keys, values = (cache[blocks].flatten(0, 1)[: length - first].transpose(0, 1) for cache in (k_cache, v_cache))
    q = q.transpose(0, 1).unflatten(0, (num_kv_heads, num_heads // num_kv_heads))  # [kv, group, new, head_dim]
    tile = max(1, TILE_ELEMENTS // (length - first))
    pieces = [
        _attend_tile(q[:, :, start : start + tile], keys, values, length - new + start - first, scoring)
        for start in range(0, new, tile)
    ]
    return torch.cat(pieces, dim=2).flatten(0, 1).transpose(0, 1)


def _attend_tile(q: Tensor, keys: Tensor, values: Tensor, position: int, scoring: Scoring) -> Tensor:
    """``q [kv, group, n, head_dim]`` of tokens ``position``, ``position + 1``, …; keys ``[kv, tokens, head_dim]``.

    Positions count from the first key. Each query sees the keys up to its own, within the window.
    """
    num, end = q.shape[2], position + q.shape[2]
    begin = max(0, position - scoring.window + 1) if scoring.window else 0
    shape = (*q.shape[:2], end - begin, q.shape[3])
    keys, values = (each[:, None, begin:end].expand(shape) for each in (keys, values))
    if scoring.softcap or scoring.sinks is not None:
        return _attend_explicitly(q, keys, values, _distance(q, position - begin, end - begin), scoring)
    causal = num == end - begin and not scoring.window and scoring.slopes is None
    mask = None if causal else _mask(_distance(q, position - begin, end - begin), scoring, q)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal, scale=scoring.scale)


def _distance(q: Tensor, position: int, num_keys: int) -> Tensor:
    """Key position less query position, ``[n, num_keys] int64``; the first query is at ``position``."""
    at = torch.arange(position, position + q.shape[2], device=q.device)
    return torch.arange(num_keys, device=q.device)[None, :] - at[:, None]


def _visible(distance: Tensor, window: int) -> Tensor:
    visible = distance <= 0
    return visible & (distance > -window) if window else visible


def _mask(distance: Tensor, scoring: Scoring, q: Tensor) -> Tensor:
    """What ``scaled_dot_product_attention`` adds or hides: bool ``[n, keys]``, or with ALiBi a bias per head."""
    visible = _visible(distance, scoring.window)
    if scoring.slopes is None:
        return visible
    bias = scoring.slopes.view(*q.shape[:2], 1, 1) * distance
    return bias.masked_fill(~visible, float("-inf")).to(q.dtype)


def _attend_explicitly(q: Tensor, keys: Tensor, values: Tensor, distance: Tensor, scoring: Scoring) -> Tensor:
    """Scores in fp32, a head group at a time; what the fused kernels of torch have no words for."""
    hidden = ~_visible(distance, scoring.window)
    out = torch.empty_like(q)
    for kv in range(q.shape[0]):
        scores = capped(torch.matmul(q[kv], keys[kv].transpose(-1, -2)).float() * scoring.scale, scoring.softcap)
        if scoring.slopes is not None:
            scores = scores + scoring.slopes.view(q.shape[:2])[kv, :, None, None] * distance
        scores = scores.masked_fill(hidden, float("-inf")).transpose(0, 1).unsqueeze(1)  # [n, 1, group, keys]
        sinks = None if scoring.sinks is None else scoring.sinks.view(q.shape[:2])[kv]
        weights = softmax_with_sinks(scores, sinks)[:, 0].transpose(0, 1)
        out[kv] = torch.matmul(weights.to(values.dtype), values[kv])
    return out
