"""The attention layer: project, normalise, rotate, write the pages, attend, project back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.layers.alibi import alibi_slopes
from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.attention.paged import write_and_attend
from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.linear import Linear
from ostinato.layers.norm import make_norm
from ostinato.layers.rope import apply_rope
from ostinato.layers.specs import AttentionSpec, NormSpec


class Attention(nn.Module):
    """Grouped-query attention over caller-owned pages. The cache is an argument: the module keeps no state."""

    slopes: Tensor | None
    sinks: nn.Parameter | None

    def __init__(self, hidden_size: int, spec: AttentionSpec, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.qkv = Linear(hidden_size, spec.q_size + 2 * spec.kv_size, bias=spec.qkv_bias)
        self.o = Linear(spec.q_size, hidden_size, bias=spec.o_bias)
        widths = {"head": (spec.head_dim, spec.head_dim), "full": (spec.q_size, spec.kv_size)}
        if spec.qk_norm:
            self.q_norm, self.k_norm = (make_norm(width, norm) for width in widths[spec.qk_norm])
        self.sinks = nn.Parameter(torch.empty(spec.num_heads), requires_grad=False) if spec.sinks else None
        self.register_buffer("slopes", None, persistent=False)

    def make_buffers(self, device: torch.device) -> None:
        """What is neither in the checkpoint nor an argument: ALiBi's slopes."""
        if self.spec.alibi is not None:
            self.slopes = alibi_slopes(self.spec.num_heads, self.spec.alibi, self.spec.scale, device)

    def forward(self, x: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata) -> Tensor:
        """``[tokens, hidden_size] -> [tokens, hidden_size]``; writes the tokens' keys and values into the caches."""
        spec = self.spec
        q, k, v = self._project(x)
        if spec.rope is not None and meta.cos is not None and meta.sin is not None:
            q = apply_rope(q, meta.cos, meta.sin, interleaved=spec.rope.interleaved)
            k = apply_rope(k, meta.cos, meta.sin, interleaved=spec.rope.interleaved)
        scoring = Scoring(spec.scale, spec.window or 0, spec.softcap or 0.0, self.slopes, self.sinks)
        attended = write_and_attend(q, k, v, k_cache, v_cache, meta, scoring)
        out: Tensor = self.o(attended.flatten(1))
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by head, the first two normalised where the spec says so."""
        spec = self.spec
        qkv = self.qkv(x)
        if spec.clip_qkv is not None:
            qkv = qkv.clamp(-spec.clip_qkv, spec.clip_qkv)
        q, k, v = qkv.split([spec.q_size, spec.kv_size, spec.kv_size], dim=-1)
        if spec.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (each.unflatten(-1, (-1, spec.head_dim)) for each in (q, k, v))
        if spec.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v
