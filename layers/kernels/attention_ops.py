"""The attention operators over our kernels, known to ``torch.compile`` by their shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.layers.errors import ConfigError

_library = torch.library.Library("ostinato", "FRAGMENT")
_library.define(
    "write_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slot_mapping) -> ()"
)
_SCORING = "float scale, int window, float softcap, Tensor? slopes, Tensor? sinks"
_library.define(
    f"paged_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor context_lens, {_SCORING}) -> Tensor"
)
_library.define(
    "paged_varlen(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor context_lens, "
    f"Tensor cu_seqlens_q, Tensor? host, {_SCORING}) -> Tensor"
)
