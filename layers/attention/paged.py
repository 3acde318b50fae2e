"""Writing new keys and values into the pages, then attending over them: one function, whatever the backend.

The only place that knows every backend. Which one runs is static metadata of the step (``meta.backend``); which of its
two paths (decode, varlen) is told by ``meta.cu_seqlens_q``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.attention.decode import decode_attention
from ostinato.layers.attention.flash_ops import attend as attend_by_flash
from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.attention.varlen import varlen_attention
from ostinato.layers.kernels import attention_ops as _registers_the_kernels  # noqa: F401


def write_and_attend(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata, scoring: Scoring
) -> Tensor:
    """Attention of new tokens over their whole context, themselves included; their keys and values are stored first.

    q ``[tokens, num_heads, head_dim]``; k, v ``[tokens, num_kv_heads, head_dim]``, written at ``meta.slot_mapping`` of
    the caches ``[num_blocks, block_size, num_kv_heads, head_dim]``. Returns ``[tokens, num_heads, head_dim]``.
    """
    if meta.backend is AttentionBackend.TORCH:
        write_pages(k_cache, k, meta.slot_mapping)
        write_pages(v_cache, v, meta.slot_mapping)
        return _by_torch(q, k_cache, v_cache, meta, scoring)
    torch.ops.ostinato.write_kv(k, v, k_cache, v_cache, meta.slot_mapping)
    if meta.backend is AttentionBackend.FLASH:
        return attend_by_flash(q, k, v, k_cache, v_cache, meta, scoring)
    return _by_triton(q, k_cache, v_cache, meta, scoring)


def write_pages(cache: Tensor, new: Tensor, slot_mapping: Tensor) -> None:
    """Write ``new [tokens, num_kv_heads, head_dim]`` at ``slot_mapping [tokens] int64`` of ``cache``, in place."""
    cache.view(-1, *cache.shape[2:]).index_copy_(0, slot_mapping, new)


def _by_torch(q: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata, scoring: Scoring) -> Tensor:
    table, lengths = meta.block_table, meta.context_lens
    if meta.cu_seqlens_q is None:
        return decode_attention(q, k_cache, v_cache, table, lengths, scoring, meta.table_start)
    attended: Tensor = varlen_attention(q, k_cache, v_cache, table, lengths, meta.cu_seqlens_q, *scoring)
    return attended


def _by_triton(q: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata, scoring: Scoring) -> Tensor:
    ops, table, lengths = torch.ops.ostinato, meta.block_table, meta.context_lens
    if meta.cu_seqlens_q is None:
        attended: Tensor = ops.paged_decode(q, k_cache, v_cache, table, lengths, *scoring)
    else:
        attended = ops.paged_varlen(q, k_cache, v_cache, table, lengths, meta.cu_seqlens_q, meta.host, *scoring)
    return attended
