"""Every model is this decoder, composed from its spec when it is built; a family is only data.

Knows layers and the spec; knows no family, no request and no graph. A block is called with its own cache tensors, never
by its index, so all blocks of one kind share one compiled form.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.attention.module import Attention
from ostinato.layers.embedding import Embedding
from ostinato.layers.linear import Linear
from ostinato.layers.mlp import GatedMlp
from ostinato.layers.norm import RMSNorm
from ostinato.models.spec import LayerSpec, ModelSpec

KVCache = Sequence[tuple[Tensor, Tensor]]
"""Per layer: keys and values, each ``[num_blocks, block_size, num_kv_heads, head_dim]``."""


class Block(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, model: ModelSpec, layer: LayerSpec) -> None:
        super().__init__()
        self.pre_attn_norm = RMSNorm(model.hidden_size, model.norm)
        self.attention = Attention(model.hidden_size, layer.attention, model.norm)
        self.pre_ffn_norm = RMSNorm(model.hidden_size, model.norm)
        self.ffn = GatedMlp(model.hidden_size, layer.ffn)

    def forward(self, x: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata) -> Tensor:
        """``[tokens, hidden_size] -> [tokens, hidden_size]``."""
        x = x + self.attention(self.pre_attn_norm(x), k_cache, v_cache, meta)
        out: Tensor = x + self.ffn(self.pre_ffn_norm(x))
        return out


class Decoder(nn.Module):
    """The parts of a model: embedding, blocks, final norm and head. ``models.decode_step`` strings them together."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec, layer) for layer in spec.layers)
        self.norm = RMSNorm(spec.hidden_size, spec.norm)
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size)
        if spec.tie_word_embeddings:
            self.lm_head.weight = self.embed.weight

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[rows, hidden_size]`` to logits ``[rows, vocab_size]`` in the model's dtype."""
        logits: Tensor = self.lm_head(hidden)
        return logits
