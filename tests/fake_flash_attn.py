"""A stand-in for flash-attn and its relatives: their published signatures and restrictions, computed in float64.

Every call is bound to the published signature, so a name they do not know fails here as it fails there. What they
refuse is refused, what they leave unwritten is NaN, and what they read although its weight is 0 reaches the result.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

NAN = float("nan")
_FA4_WINDOW = "window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None"

SIGNATURES = {
    # flash_attn/flash_attn_interface.py of v2.8.3 (the same in 2.7.0 and at 2.8.4)
    ("2.8.3", "flash_attn_varlen_func"): (
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, "
        "causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
        "return_attn_probs=False, block_table=None"
    ),
    ("2.8.3", "flash_attn_with_kvcache"): (
        "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, "
        "cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, "
        "window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0, "
        "return_softmax_lse=False"
    ),
    # v2.6.0 had no cache_leftpad; v2.5.9 no softcap either
    ("2.6.0", "flash_attn_varlen_func"): (
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, "
        "causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
        "return_attn_probs=False, block_table=None"
    ),
    ("2.6.0", "flash_attn_with_kvcache"): (
        "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, "
        "cache_batch_idx=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
        "rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False"
    ),
    ("2.5.9", "flash_attn_varlen_func"): (
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, "
        "causal=False, window_size=(-1, -1), alibi_slopes=None, deterministic=False, return_attn_probs=False, "
        "block_table=None"
    ),
    ("2.5.9", "flash_attn_with_kvcache"): (
        "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, "
        "cache_batch_idx=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), "
        "rotary_interleaved=True, alibi_slopes=None, num_splits=0"
    ),
    # hopper/flash_attn_interface.py at 3.0.0 (3.0.0b1 of v2.8.3 lacks the last parameter of the first)
    ("3.0.0", "flash_attn_varlen_func"): (
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, "
        "softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, "
        "window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, "
        "sm_margin=0, return_attn_probs=False"
    ),
    ("3.0.0", "flash_attn_with_kvcache"): (
        "q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, "
        "cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None, "
        "max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, "
        "causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True, "
        "scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False"
    ),
    # flash_attn/cute/interface.py of fa4-v4.0.0.beta8 and beta27
    ("4.0.0b8", "flash_attn_varlen_func"): (
        "q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None, "
        f"seqused_k=None, page_table=None, softmax_scale=None, causal=False, {_FA4_WINDOW}, deterministic=False, "
        "score_mod=None, aux_tensors=None, return_lse=False"
    ),
    ("4.0.0b27", "flash_attn_varlen_func"): (
        "q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, "
        "min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, "
        f"softmax_scale=None, causal=False, {_FA4_WINDOW}, deterministic=False, score_mod=None, score_mod_bwd=None, "
        "mask_mod=None, block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False, "
        "scheduler_metadata=None, seqlen_k_per_split=None, disable_scheduler_metadata=False"
    ),
    # torch/nn/attention/varlen.py: 2.10's, one between 2.10 and 2.12 without grouped queries by name, and 2.12's
    ("torch 2.10", "varlen_attn"): (
        "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None"
    ),
    ("torch 2.11", "varlen_attn"): (
        "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)"
    ),
    ("torch 2.12", "varlen_attn"): (
        "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), "
        "enable_gqa=False, seqused_k=None, block_table=None, num_splits=None"
    ),
}


def signature_of(version: str, function: str) -> inspect.Signature:
    """The published signature, names, order and defaults."""
    return inspect.signature(eval(f"lambda {SIGNATURES[version, function]}: None"))


class Published:
    """A function that takes what the published one takes, and remembers what it was given."""

    def __init__(self, version: str, function: str, compute: Callable[..., Any]) -> None:
        self.__signature__ = signature_of(version, function)
        self.compute = compute
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *args: object, **kwargs: object) -> Any:
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        self.calls.append(bound.arguments)
        return self.compute(**bound.arguments)


# ---------------------------------------------------------------- packages


def install(monkeypatch: pytest.MonkeyPatch, name: str, version: str, **functions: Callable[..., Any]) -> ModuleType:
    """A module of that name with these functions, for the length of a test."""
    module = ModuleType(name)
    module.__file__ = f"{name}.py"
    module.__spec__ = ModuleSpec(name, None)
    module.__version__ = version
    for function, compute in functions.items():
        setattr(module, function, Published(version, function, compute))
    monkeypatch.setitem(sys.modules, name, module)
    return module


def install_flash2(monkeypatch: pytest.MonkeyPatch, version: str = "2.8.3") -> ModuleType:
    """FlashAttention-2."""
    functions = {"flash_attn_varlen_func": flash2_varlen, "flash_attn_with_kvcache": flash2_with_kvcache}
    return install(monkeypatch, "flash_attn", version, **functions)


def install_flash3(monkeypatch: pytest.MonkeyPatch, version: str = "3.0.0") -> ModuleType:
    """FlashAttention-3."""
    functions = {"flash_attn_varlen_func": flash3_varlen, "flash_attn_with_kvcache": flash3_with_kvcache}
    return install(monkeypatch, "flash_attn_interface", version, **functions)


def install_flash4(monkeypatch: pytest.MonkeyPatch, version: str = "4.0.0b27") -> ModuleType:
    """FlashAttention-4, in a folder that is no package of its own."""
    folder = ModuleType("flash_attn")
    folder.__path__ = []
    folder.__file__ = None
    monkeypatch.setitem(sys.modules, "flash_attn", folder)
    return install(monkeypatch, "flash_attn.cute", version, flash_attn_varlen_func=flash4_varlen)


def install_torch_varlen(monkeypatch: pytest.MonkeyPatch, version: str = "torch 2.12") -> ModuleType:
    """torch's own module, of some release of torch."""
    return install(monkeypatch, "torch.nn.attention.varlen", version, varlen_attn=torch_varlen)


# ---------------------------------------------------------------- their functions


def flash2_varlen(  # csrc/flash_attn/flash_api.cpp, mha_varlen_fwd
    q: Tensor, k: Tensor, v: Tensor, *, block_table: Tensor | None, alibi_slopes: Tensor | None = None, **rest: Any
) -> Tensor:
    tensors_fit(q, k, v)
    starts_q, starts_k = rest["cu_seqlens_q"], rest["cu_seqlens_k"]
    fits(k.shape[1] % 256 == 0 or block_table is None, "Paged KV cache block size must be divisible by 256")
    integers_fit(starts_q, starts_k, block_table)
    fits(rest["dropout_p"] == 0.0, "no dropout is wanted")
    num_heads, num_kv_heads = q.shape[1], k.shape[-2]
    swaps = num_heads > num_kv_heads and rest["window_size"] == (-1, -1) and alibi_slopes is None
    if rest["max_seqlen_q"] == 1 and swaps:
        fits(len(q) == len(starts_q) - 1, f"shape [{len(starts_q) - 1}, ...] is invalid for {len(q)} tokens")
    return varlen(q, k, v, starts_q, starts_k, block_table, slopes=alibi_slopes, **rest)


def flash2_with_kvcache(  # csrc/flash_attn/flash_api.cpp, mha_fwd_kvcache
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    block_table: Tensor,
    alibi_slopes: Tensor | None,
    num_splits: int,
    **rest: Any,
) -> Tensor:
    tensors_fit(q, k_cache, v_cache)
    integers_fit(cache_seqlens, block_table)
    fits(k_cache.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256")
    fits(0 <= num_splits <= 128, "num_splits > 128 not supported")
    return paged(q, k_cache, v_cache, cache_seqlens, block_table, slopes=alibi_slopes, **rest)


def flash3_varlen(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:  # hopper/flash_api.cpp, mha_fwd
    tensors_fit(q, k, v)
    starts_q, starts_k = rest["cu_seqlens_q"], rest["cu_seqlens_k"]
    integers_fit(starts_q, starts_k)
    return varlen(q, k, v, starts_q, starts_k, None, tile=128, **rest)


def flash3_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor | None,
    **rest: Any,
) -> Tensor:
    tensors_fit(q, k_cache, v_cache)
    integers_fit(cache_seqlens, page_table)
    if cu_seqlens_q is None:  # few queries: pages are loaded token by token (get_pagedkv_tma)
        return paged(q, k_cache, v_cache, cache_seqlens, page_table, **rest)
    integers_fit(cu_seqlens_q)
    out = torch.full_like(q, NAN)
    tile = k_cache.shape[1] if k_cache.shape[1] % 64 == 0 else 0
    for row, (start, end) in enumerate(spans(cu_seqlens_q)):
        fits(end - start <= rest["max_seqlen_q"], "max_seqlen_q is less than a row has")
        keys, values = (pages_of(cache, page_table[row], cache_seqlens[row], tile) for cache in (k_cache, v_cache))
        out[start:end] = exact(q[start:end], keys, values, int(cache_seqlens[row]), **scored(rest))
    return out


def flash4_varlen(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> tuple[Tensor, None]:
    tensors_fit(q, k, v)
    starts_q, starts_k = rest["cu_seqlens_q"], rest["cu_seqlens_k"]
    integers_fit(starts_q, starts_k)
    fits(all(each is None or each >= 0 for each in rest["window_size"]), "an open window is None, not -1")
    return varlen(q, k, v, starts_q, starts_k, None, tile=128, **rest), None


def torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, *, window_size: tuple[int, int], scale: float, **rest: Any
) -> Tensor:
    tensors_fit(query, key, value)
    integers_fit(rest["cu_seq_q"], rest["cu_seq_k"])
    if "enable_gqa" in rest:
        fits(rest["enable_gqa"] or query.shape[1] == key.shape[1], "Try setting enable_gqa=True for GQA")
    fits(rest["max_q"] > 1 or len(query) == len(rest["cu_seq_q"]) - 1, "shape is invalid")
    bounds = {"max_seqlen_q": rest["max_q"], "max_seqlen_k": rest["max_k"]}
    how = {"softmax_scale": scale, "causal": window_size == (-1, 0), "window_size": window_size, "softcap": 0.0}
    return varlen(query, key, value, rest["cu_seq_q"], rest["cu_seq_k"], None, **bounds, **how)


# ---------------------------------------------------------------- what they have in common


def fits(condition: bool, message: str) -> None:
    """What a binary raises where its arguments do not fit."""
    if not condition:
        raise RuntimeError(message)


def tensors_fit(q: Tensor, k: Tensor, v: Tensor) -> None:
    fits(q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type")
    fits(q.dtype == k.dtype == v.dtype, "query, key and value must have the same dtype")
    fits(q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "Input tensor must have contiguous last dimension")
    fits(q.shape[-1] <= 256 and q.shape[-1] % 8 == 0, "head_size must be a multiple of 8, at most 256")
    fits(k.shape == v.shape and q.shape[-1] == k.shape[-1], "shapes differ")
    fits(q.shape[-2] % k.shape[-2] == 0, "Number of heads in key/value must divide number of heads in query")


def integers_fit(*tensors: Tensor | None) -> None:
    """Lengths, starts and tables."""
    for each in tensors:
        if each is not None:
            fits(each.dtype == torch.int32, "must have dtype int32")
            fits(each.stride(-1) == 1, "must have contiguous last dimension")


def spans(starts: Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise(starts.tolist()))


def pages_of(cache: Tensor, table: Tensor, length: Tensor, tile: int = 0) -> Tensor:
    """A row's keys or values; with a ``tile``, all that is loaded beside them."""
    block_size = cache.shape[1]
    num = -(-int(length) // block_size)
    fits(num <= len(table), f"the table names {len(table)} pages, the context has {num}")
    return cache[table[:num].long()].flatten(0, 1)[: None if tile else int(length)]


def scored(rest: dict[str, Any]) -> dict[str, Any]:
    return {name: rest[name] for name in ("softmax_scale", "causal", "window_size", "softcap")}


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    table: Tensor | None,
    *,
    slopes: Tensor | None = None,
    tile: int = 0,
    **rest: Any,
) -> Tensor:
    """Rows by their starts, k and v dense or in pages. ``tile``: values that many tokens behind a row are read too."""
    out = torch.full_like(q, NAN)
    for row, (start, end) in enumerate(spans(starts_q)):
        first, last = starts_k[row : row + 2].tolist()
        fits(end - start <= rest["max_seqlen_q"], "max_seqlen_q is less than a row has")
        fits(last - first <= rest["max_seqlen_k"], "max_seqlen_k is less than a row has")
        length = last - first
        if table is None:
            behind = -(-length // tile) * tile if tile else length
            keys, values = (each[first : first + behind] for each in (k, v))
        else:
            keys, values = (pages_of(each, table[row], torch.tensor(length)) for each in (k, v))
        out[start:end] = exact(q[start:end], keys, values, length, slopes=slopes, **scored(rest))
    return out


def paged(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    table: Tensor,
    *,
    slopes: Tensor | None = None,
    **rest: Any,
) -> Tensor:
    """q ``[rows, tokens, num_heads, head_dim]`` over pages."""
    fits(table.shape[0] == len(q) == len(lengths), "block_table must have shape (batch_size, ...)")
    out = torch.full_like(q, NAN)
    for row, length in enumerate(lengths.tolist()):
        keys, values = (pages_of(cache, table[row], lengths[row]) for cache in (k_cache, v_cache))
        out[row] = exact(q[row], keys, values, length, slopes=slopes, **scored(rest))
    return out


def exact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: int,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int | None, int | None],
    softcap: float,
    slopes: Tensor | None = None,
) -> Tensor:
    """One row as the documentation says: q ``[n, num_heads, head_dim]``; k, v ``[length or more, num_kv_heads, …]``.

    Masks are aligned to the bottom right corner. ALiBi adds ``-slope * |i + length - n - j|``, after the softcap.
    Values from ``length`` on have a weight of 0 and are multiplied all the same.
    """
    group = q.shape[1] // k.shape[1]
    q, v = q.double(), v.double().repeat_interleave(group, 1)
    keys = k[:length].double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * softmax_scale
    if softcap > 0:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(length)[None, :] - (torch.arange(len(q))[:, None] + length - len(q))
    if slopes is not None:
        fits(slopes.dtype == torch.float32, "ALiBi slopes must have dtype fp32")
        scores = scores - slopes.double()[:, None, None] * distance.abs()
    left, right = (-1 if each is None else each for each in window_size)
    right = 0 if causal else right
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    weights = torch.where(seen.any(-1, keepdim=True), weights, 0.0)
    weights = torch.nn.functional.pad(weights, (0, len(v) - length))
    return torch.einsum("hqk,khd->qhd", weights, v)
