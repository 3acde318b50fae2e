"""flash-attn and its relatives behind one set of calls: what each of them serves, and how each wants to be called.

Four public interfaces, each with its own names (read at flash-attn 2.8.3, hopper 3.0.0, fa4 4.0.0 beta 27, torch 2.13).
Whether one of them is installed and works is found out in ``flash_detect``; this file imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ostinato.layers.attention.scoring import Scoring

Path = Literal["decode", "chunks", "prompts"]
"""One new token per row over pages; rows of any number of new tokens over pages; rows without cached tokens."""

MAX_SPLITS = 32
TOKENS_PER_SPLIT = 256


class FlashKind(Enum):
    """A published interface; the value is its name in messages."""

    FLASH3 = "FlashAttention-3"
    FLASH2 = "FlashAttention-2"
    FLASH4 = "FlashAttention-4"
    TORCH = "torch's varlen attention"


@dataclass(frozen=True)
class FlashBuild:
    """An installed implementation that was tried on the device and works."""

    kind: FlashKind
    version: str
    varlen: Callable[..., Tensor | tuple[Tensor, ...]]
    with_kvcache: Callable[..., Tensor]
    """``no_pages`` where we use no pages of the interface."""
    varlen_takes: frozenset[str]
    """Parameter names of ``varlen``: torch has added to them from release to release."""
    capability: tuple[int, int] = (0, 0)
    multiprocessors: int = 1
    passed_over: tuple[str, ...] = ()
    """Why those tried before it do not serve, a line each."""

    @property
    def name(self) -> str:
        """For plans and messages."""
        return f"{self.kind.value} {self.version}"


def no_pages(*_: object, **__: object) -> Tensor:
    """Stand where an interface has nothing for us; ``refusal`` keeps everybody from calling it."""
    raise RuntimeError("this build is used for prompts without cached tokens only")


class FlashLayer(NamedTuple):
    """What decides whether an attention layer can be served."""

    dtype: torch.dtype
    head_dim: int
    block_size: int
    """Tokens of a page."""
    softcap: bool = False
    alibi: bool = False
    sinks: bool = False


def preferred_block_size(build: FlashBuild) -> int:
    """The page size, in tokens, with which ``build`` serves most paths; 16 where it does not care."""
    return 256 if build.kind is FlashKind.FLASH2 else 16


def refusal(build: FlashBuild, layer: FlashLayer, path: Path) -> str | None:
    """Why ``build`` does not serve ``layer`` on ``path``, in a line; None where it does."""
    reason = _refused_layer(build, layer)
    return reason or (None if path == "prompts" else _refused_pages(build.kind, layer.block_size, path))


def _refused_layer(build: FlashBuild, layer: FlashLayer) -> str | None:
    name = build.kind.value
    if layer.dtype not in (torch.float16, torch.bfloat16):
        return f"{name} computes in float16 and bfloat16, the layer in {str(layer.dtype).removeprefix('torch.')}"
    if layer.head_dim > 256 or layer.head_dim % 8:
        return f"{name} takes head sizes up to 256 that are multiples of 8, the layer has {layer.head_dim}"
    if build.kind is FlashKind.FLASH4 and build.capability[0] > 9 and 128 < layer.head_dim < 256:
        return f"{name} takes head sizes up to 128, and 256, on this device; the layer has {layer.head_dim}"
    if layer.sinks:
        return f"{name} is not called with attention sinks"
    if layer.alibi and build.kind is not FlashKind.FLASH2:
        return f"{name} has no ALiBi"
    if layer.softcap and build.kind is FlashKind.TORCH:
        return f"{name} has no softcap"
    return None


def _refused_pages(kind: FlashKind, block_size: int, path: Path) -> str | None:
    if kind in (FlashKind.TORCH, FlashKind.FLASH4):
        return f"{kind.value} is used for prompts without cached tokens only"
    if kind is FlashKind.FLASH2 and block_size % 256:
        return f"{kind.value} takes pages of multiples of 256 tokens, these have {block_size}"
    if kind is FlashKind.FLASH3 and path == "chunks" and block_size % 64 == 0:
        # Such pages are loaded by TMA in whole tiles, and weights of 0 meet the values of slots nobody has written:
        # NaN there would reach the result (flash-attention issues 1745, 2374). Other pages are loaded token by token.
        return f"{kind.value} reads unwritten slots of pages of multiples of 64 tokens, these have {block_size}"
    return None


def num_splits(build: FlashBuild, rows: int, num_kv_heads: int, capacity: int) -> int:
    """Into how many parts a decode step's contexts are divided: a function of shapes, so a captured graph may hold it.

    As many as give each multiprocessor two blocks of work, none of which is shorter than ``TOKENS_PER_SPLIT`` where
    a row has all the ``capacity`` tokens that its table can name.
    """
    wanted = 2 * build.multiprocessors // (rows * num_kv_heads)
    return max(1, min(wanted, capacity // TOKENS_PER_SPLIT, MAX_SPLITS))


def decode(
    build: FlashBuild, q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, lengths: Tensor, scoring: Scoring
) -> Tensor:
    """``q [rows, num_heads, head_dim]``, one token per row, over its first ``lengths [rows] int32`` cached tokens."""
    flash2 = build.kind is FlashKind.FLASH2
    splits = num_splits(build, len(q), k_cache.shape[2], table.shape[1] * k_cache.shape[1])
    out = build.with_kvcache(
        q.unsqueeze(1),
        k_cache,
        v_cache,
        cache_seqlens=lengths,
        num_splits=splits,
        **{"block_table" if flash2 else "page_table": table},
        **({"alibi_slopes": scoring.slopes} if flash2 else {}),
        **_scored(scoring),
    )
    return out.squeeze(1)


def chunks(
    build: FlashBuild,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    lengths: Tensor,
    cu_seqlens_q: Tensor,
    most: int,
    longest: int,
    scoring: Scoring,
) -> Tensor:
    """``q [tokens, num_heads, head_dim]``, the last tokens of each row's ``lengths [rows] int32`` cached ones.

    ``most`` bounds the new tokens of a row, ``longest`` its context. Tokens of no row are left undefined.
    """
    if build.kind is FlashKind.FLASH2:
        cu_seqlens_k = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        spans = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
        bounds = {"max_seqlen_q": _at_least_two(most), "max_seqlen_k": longest}
        scored = {"alibi_slopes": scoring.slopes, **_scored(scoring)}
        return _only_tensor(build.varlen(q, k_cache, v_cache, block_table=table, **spans, **bounds, **scored))
    return build.with_kvcache(
        q,
        k_cache,
        v_cache,
        cache_seqlens=lengths,
        page_table=table,
        cu_seqlens_q=cu_seqlens_q,
        max_seqlen_q=most,
        num_splits=1,  # more would need a float32 copy of the output for each
        **_scored(scoring),
    )


def prompts(
    build: FlashBuild, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, most: int, scoring: Scoring
) -> Tensor:
    """Rows that have no tokens but these: q ``[tokens, num_heads, head_dim]``, k, v ``[tokens, num_kv_heads, …]``.

    ``most`` bounds the tokens of a row. Tokens of no row are left undefined; their values must be finite, since
    FlashAttention-3 and 4 multiply what lies behind a row with weights of 0.
    """
    if build.kind is FlashKind.TORCH:
        grouped = {"enable_gqa": True} if "enable_gqa" in build.varlen_takes else {}
        most = _at_least_two(most)
        window = (scoring.window - 1, 0)  # (-1, 0), its word for causal, without a window
        found = build.varlen(
            q, k, v, cu_seqlens, cu_seqlens, most, most, scale=scoring.scale, window_size=window, **grouped
        )
        return _only_tensor(found)
    scored = _scored(scoring)
    if build.kind is FlashKind.FLASH2:
        scored["alibi_slopes"] = scoring.slopes
    elif build.kind is FlashKind.FLASH4 and not scoring.window:
        scored["window_size"] = (None, None)
    spans = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    bounds = dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), _at_least_two(most))
    return _only_tensor(build.varlen(q, k, v, **spans, **bounds, **scored))


def _scored(scoring: Scoring) -> dict[str, object]:
    """What every interface but torch's calls by the same names. A window counts the query's own token, theirs not."""
    window = (scoring.window - 1, 0) if scoring.window else (-1, -1)
    return {"softmax_scale": scoring.scale, "causal": True, "window_size": window, "softcap": scoring.softcap}


def _at_least_two(most: int) -> int:
    """With a bound of 1, FlashAttention-2 takes it that there are as many tokens as rows, and ours may be padded."""
    return max(2, most)


def _only_tensor(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output alone, where a release gives sums beside it."""
    return found[0] if isinstance(found, tuple) else found
