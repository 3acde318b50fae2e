"""Attention of steps whose rows have different numbers of new tokens: prompts, chunks, and decode rows among them.

One opaque operator, ``torch.ops.ostinato.varlen_attention``. It reads the pages that an in-place write has just filled
and mutates nothing, which lets it stand inside a nested compile region. Its Python loops over rows, so it is never
captured: steps that use it are launched eagerly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ostinato.layers.attention.decode import decode_attention


@torch.library.custom_op("ostinato::varlen_attention", mutates_args=())
def varlen_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    scale: float,
) -> Tensor:
    """Causal attention of each row's new tokens over its whole cached context.

    q ``[tokens, num_heads, head_dim]``; row ``r`` owns tokens ``cu_seqlens_q[r] : cu_seqlens_q[r + 1]``, the last ones
    of its ``context_lens[r]`` cached tokens. Rows and tokens beyond the step's own have no tokens and return zeros.
    """
    out = torch.zeros_like(q)
    starts = cu_seqlens_q.tolist()
    lengths = context_lens.tolist()
    spans = [(row, starts[row], starts[row + 1]) for row in range(len(lengths)) if starts[row + 1] > starts[row]]
    single = [(row, start) for row, start, end in spans if end - start == 1]
    if single:
        rows, tokens = (list(column) for column in zip(*single, strict=True))
        width = -(-max(lengths[row] for row in rows) // k_cache.shape[1])
        out[tokens] = decode_attention(
            q[tokens], k_cache, v_cache, block_table[rows, :width], context_lens[rows], scale
        )
    for row, start, end in spans:
        if end - start > 1:
            out[start:end] = _attend_row(q[start:end], k_cache, v_cache, block_table[row], lengths[row], scale)
    return out


@varlen_attention.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


def _attend_row(q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, length: int, scale: float) -> Tensor:
    """One row's new tokens ``q [new, num_heads, head_dim]`` over its ``length`` cached tokens."""
    new, num_heads = q.shape[:2]
    blocks = table[: -(-length // k_cache.shape[1])]
    keys, values = (_pages(cache, blocks, length, num_heads) for cache in (k_cache, v_cache))
    mask = None
    if new < length:
        positions = torch.arange(length, device=q.device)
        mask = positions[None, :] <= positions[length - new :, None]
    q = q.transpose(0, 1).unsqueeze(0)
    attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale)
    return attended[0].transpose(0, 1)


def _pages(cache: Tensor, blocks: Tensor, length: int, num_heads: int) -> Tensor:
    """The first ``length`` tokens of a table's pages, repeated per query head: ``[1, num_heads, length, head_dim]``."""
    tokens = cache[blocks].flatten(0, 1)[:length].transpose(0, 1)
    return tokens.repeat_interleave(num_heads // tokens.shape[0], dim=0).unsqueeze(0)
