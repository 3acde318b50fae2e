"""The attention layer: project, normalise, rotate, write the pages, attend, project back."""

from __future__ import annotations

from torch import Tensor, nn

from ostinato.layers.attention.decode import decode_attention
from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.attention.varlen import varlen_attention
from ostinato.layers.linear import Linear
from ostinato.layers.norm import RMSNorm
from ostinato.layers.rope import apply_rope
from ostinato.layers.specs import AttentionSpec, NormSpec


class Attention(nn.Module):
    """Grouped-query attention over caller-owned pages. The cache is an argument: the module keeps no state."""

    def __init__(self, hidden_size: int, spec: AttentionSpec, norm: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.qkv = Linear(hidden_size, spec.q_size + 2 * spec.kv_size, bias=spec.qkv_bias)
        self.o = Linear(spec.q_size, hidden_size, bias=spec.o_bias)
        self.q_norm = RMSNorm(spec.head_dim, norm) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, norm) if spec.qk_norm else nn.Identity()

    def forward(self, x: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata) -> Tensor:
        """``[tokens, hidden_size] -> [tokens, hidden_size]``; writes the tokens' keys and values into the caches."""
        spec = self.spec
        q, k, v = self.qkv(x).split([spec.q_size, spec.kv_size, spec.kv_size], dim=-1)
        q = apply_rope(self.q_norm(q.unflatten(-1, (spec.num_heads, spec.head_dim))), meta.cos, meta.sin)
        k = apply_rope(self.k_norm(k.unflatten(-1, (spec.num_kv_heads, spec.head_dim))), meta.cos, meta.sin)
        write_pages(k_cache, k, meta.slot_mapping)
        write_pages(v_cache, v.unflatten(-1, (spec.num_kv_heads, spec.head_dim)), meta.slot_mapping)
        if meta.cu_seqlens_q is None:
            attended = decode_attention(q, k_cache, v_cache, meta.block_table, meta.context_lens, spec.scale)
        else:
            attended = varlen_attention(
                q, k_cache, v_cache, meta.block_table, meta.context_lens, meta.cu_seqlens_q, spec.scale
            )
        out: Tensor = self.o(attended.flatten(1))
        return out


def write_pages(cache: Tensor, new: Tensor, slot_mapping: Tensor) -> None:
    """Write ``new [tokens, num_kv_heads, head_dim]`` at ``slot_mapping [tokens] int64`` of ``cache``, in place."""
    cache.view(-1, *cache.shape[2:]).index_copy_(0, slot_mapping, new)
