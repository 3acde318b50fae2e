"""The attention operators over our kernels, known to ``torch.compile`` by their shapes.

``torch.ops.ostinato.write_kv``, ``paged_decode`` and ``paged_varlen``; shapes and meaning are those of the functions of
the same names, in the modules that launch the kernels. Those are imported, and Triton with them, by the first launch.
On a CPU the kernels run in Triton's interpreter, which is for tests: it has to be asked for before the first launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.errors import ConfigError
from ostinato.layers.kernels.availability import interpreted

_library = torch.library.Library("ostinato", "FRAGMENT")
_library.define("write_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slot_mapping) -> ()")
_SCORING = "float scale, int window, float softcap, Tensor? slopes, Tensor? sinks"
_PAGES = "Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor context_lens"
_library.define(f"paged_decode(Tensor q, {_PAGES}, {_SCORING}) -> Tensor")
_library.define(f"paged_varlen(Tensor q, {_PAGES}, Tensor cu_seqlens_q, Tensor? host, {_SCORING}) -> Tensor")


def _check(name: str, new: Tensor, *caches: Tensor) -> None:
    """Refuse what the kernels would compute wrongly or not at all."""
    if new.device.type == "cpu" and not interpreted():
        raise ConfigError(
            f"ostinato::{name}: its tensors are on the CPU, where Triton kernels run in Triton's interpreter only; "
            "set TRITON_INTERPRET=1 before the process starts, or use attention_backend='torch'"
        )
    for cache in caches:
        if cache.dtype != new.dtype or cache.shape[-1] != new.shape[-1]:
            raise ConfigError(
                f"ostinato::{name}: the cache holds {cache.dtype} heads of {cache.shape[-1]}; "
                f"it was given {new.dtype} heads of {new.shape[-1]}"
            )


def _write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    _check("write_kv", k, k_cache, v_cache)
    from ostinato.layers.kernels.kv_write import write_kv

    with torch.cuda.device_of(k):
        write_kv(k, v, k_cache, v_cache, slot_mapping)


def _paged_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, context_lens: Tensor, *scoring: object
) -> Tensor:
    _check("paged_decode", q, k_cache, v_cache)
    from ostinato.layers.kernels.paged_decode import paged_decode

    how = Scoring(*scoring)  # type: ignore[arg-type]
    with torch.cuda.device_of(q):
        return paged_decode(q, k_cache, v_cache, block_table, context_lens, how)


def _paged_varlen(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    host: Tensor | None,
    *scoring: object,
) -> Tensor:
    _check("paged_varlen", q, k_cache, v_cache)
    from ostinato.layers.kernels.paged_varlen import paged_varlen

    how = Scoring(*scoring)  # type: ignore[arg-type]
    with torch.cuda.device_of(q):
        return paged_varlen(q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, host, how)


def _like_queries(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


def _nothing(*_: object) -> None:
    return None


for _name, _launch, _fake in (
    ("write_kv", _write_kv, _nothing),
    ("paged_decode", _paged_decode, _like_queries),
    ("paged_varlen", _paged_varlen, _like_queries),
):
    for _key in ("CUDA", "CPU"):
        _library.impl(_name, _launch, _key)
    torch.library.register_fake(f"ostinato::{_name}", _fake, lib=_library)
