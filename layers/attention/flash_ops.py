"""The attention operators over flash-attn, known to ``torch.compile`` by their shapes.

Each decides by dtype, shapes and scoring which implementation runs, our own kernels where flash-attn does not serve the
layer; ``host``, on the CPU, says what a step has to do, so nothing waits for the device. A captured step has no
``host``: everything is then as large as it could be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.layers.attention import flash
from ostinato.layers.attention.flash import FlashBuild, FlashLayer, Path
from ostinato.layers.attention.flash_detect import detect
from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.attention.scoring import Scoring

_library = torch.library.Library("ostinato", "FRAGMENT")
_PAGES = "Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor context_lens"
_SCORING = "float scale, int window, float softcap, Tensor? slopes, Tensor? sinks"
_library.define(f"flash_decode(Tensor q, {_PAGES}, {_SCORING}) -> Tensor")
_library.define(
    f"flash_varlen(Tensor q, Tensor k, Tensor v, {_PAGES}, Tensor cu_seqlens_q, Tensor? host, {_SCORING}) -> Tensor"
)


def attend(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata, scoring: Scoring
) -> Tensor:
    """Attention of new tokens whose keys and values ``k``, ``v`` are already in the pages; shapes as in ``paged``.

    Returns ``[tokens, num_heads, head_dim]``; tokens that belong to no row of a varlen step return zeros.
    """
    ops, lengths = torch.ops.ostinato, meta.context_lens
    if meta.cu_seqlens_q is not None:
        pages = (k_cache, v_cache, meta.block_table, lengths)
        attended: Tensor = ops.flash_varlen(q, k, v, *pages, meta.cu_seqlens_q, meta.host, *scoring)
        return attended
    if meta.table_start is not None:  # lengths from the first cell on: windows and ALiBi count from the query
        lengths = (lengths - meta.table_start * k_cache.shape[1]).to(torch.int32)
    decoded: Tensor = ops.flash_decode(q, k_cache, v_cache, meta.block_table, lengths, *scoring)
    return decoded


def _flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int,
    softcap: float,
    slopes: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    scoring = Scoring(scale, window, softcap, slopes, sinks)
    build = _serving(q, k_cache, scoring, "decode")
    if build is None:
        attended = _decode_by_us(q, k_cache, v_cache, block_table, context_lens, scoring)
    else:
        attended = flash.decode(build, q, k_cache, v_cache, block_table, context_lens, scoring)
    return attended.contiguous()


def _flash_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    host: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
    slopes: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    scoring = Scoring(scale, window, softcap, slopes, sinks)
    upper_bounds = (len(q), block_table.shape[1] * k_cache.shape[1], 1)
    most, longest, any_cached = upper_bounds if host is None else host.tolist()
    build = _serving(q, k_cache, scoring, "chunks" if any_cached else "prompts")
    if build is None:
        attended = _varlen_by_us(q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, host, scoring)
        return attended.contiguous()
    if any_cached:
        pages = (k_cache, v_cache, block_table, context_lens)
        attended = flash.chunks(build, q, *pages, cu_seqlens_q, most, longest, scoring)
    else:
        attended = flash.prompts(build, q, k, v, cu_seqlens_q, most, scoring)
    return _without_padding(attended, cu_seqlens_q).contiguous()


def _fake(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


for _name, _run in (("flash_decode", _flash_decode), ("flash_varlen", _flash_varlen)):
    _library.impl(_name, _run, "CUDA")
    _library.impl(_name, _run, "CPU")  # for a stand-in: nobody publishes such kernels for a CPU
    torch.library.register_fake(f"ostinato::{_name}", _fake, lib=_library)


def _serving(q: Tensor, k_cache: Tensor, scoring: Scoring, path: Path) -> FlashBuild | None:
    """The build that serves this layer on ``path``; None: our kernels do."""
    build = detect(q.device)
    layer = FlashLayer(
        q.dtype,
        q.shape[-1],
        k_cache.shape[1],
        softcap=bool(scoring.softcap),
        alibi=scoring.slopes is not None,
        sinks=scoring.sinks is not None,
    )
    return build if isinstance(build, FlashBuild) and flash.refusal(build, layer, path) is None else None


def _decode_by_us(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, lengths: Tensor, scoring: Scoring
) -> Tensor:
    attended: Tensor = torch.ops.ostinato.paged_decode(q, k_cache, v_cache, table, lengths, *scoring)
    return attended


def _varlen_by_us(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    lengths: Tensor,
    cu_seqlens_q: Tensor,
    host: Tensor | None,
    scoring: Scoring,
) -> Tensor:
    attended: Tensor = torch.ops.ostinato.paged_varlen(
        q, k_cache, v_cache, table, lengths, cu_seqlens_q, host, *scoring
    )
    return attended


def _without_padding(attended: Tensor, cu_seqlens_q: Tensor) -> Tensor:
    """``attended [tokens, …]`` with zeros for tokens behind the last row, which flash-attn leaves as it found them."""
    foreign = torch.arange(len(attended), device=attended.device) >= cu_seqlens_q[-1]
    return attended.masked_fill_(foreign[:, None, None], 0)
