"""Every model is this decoder, composed from its spec when it is built; a family is only data.

Knows layers and the spec; knows no family, no request and no graph. A block is called with its own cache tensors, never
by its index, so all blocks of one kind share one compiled form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.attention.module import Attention
from ostinato.layers.attention.scoring import capped
from ostinato.layers.embedding import Embedding
from ostinato.layers.linear import Linear
from ostinato.layers.mlp import make_ffn
from ostinato.layers.norm import make_norm
from ostinato.models.spec import LayerSpec, ModelSpec

KVCache = Sequence[tuple[Tensor, Tensor]]
"""Per layer: keys and values, each ``[num_blocks, block_size, num_kv_heads, head_dim]``."""


class Block(nn.Module):
    """One decoder layer; norms stand where its spec has them."""

    def __init__(self, model: ModelSpec, layer: LayerSpec) -> None:
        super().__init__()

        def norm(place: str) -> nn.Module:
            return make_norm(model.hidden_size, model.norm) if place in layer.norms else nn.Identity()

        self.pre_attn_norm, self.post_attn_norm = norm("pre_attn"), norm("post_attn")
        self.pre_ffn_norm, self.post_ffn_norm = norm("pre_ffn"), norm("post_ffn")
        self.attention = Attention(model.hidden_size, layer.attention, model.norm)
        self.ffn = make_ffn(model.hidden_size, layer.ffn)
        self.parallel, self.residual_scale = layer.parallel, layer.residual_scale
        self.one_norm = layer.parallel and "pre_ffn" not in layer.norms

    def forward(self, x: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata) -> Tensor:
        """``[tokens, hidden_size] -> [tokens, hidden_size]``."""
        normed = self.pre_attn_norm(x)
        attended = self.attention(normed, k_cache, v_cache, meta)
        if self.parallel:
            out: Tensor = x + attended + self.ffn(normed if self.one_norm else self.pre_ffn_norm(x))
            return out
        x = x + self._scaled(self.post_attn_norm(attended))
        return x + self._scaled(self.post_ffn_norm(self.ffn(self.pre_ffn_norm(x))))

    def _scaled(self, added: Tensor) -> Tensor:
        return added if self.residual_scale == 1.0 else added * self.residual_scale


class Decoder(nn.Module):
    """The parts of a model: embedding, blocks, final norm and head. ``models.decode_step`` strings them together."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embedding(spec.vocab_size, spec.hidden_size)
        if spec.num_learned_positions:
            self.embed_positions = Embedding(spec.num_learned_positions, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec, layer) for layer in spec.layers)
        self._embed_scale = spec.embed_scale
        self.norm = make_norm(spec.hidden_size, spec.norm)
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size)
        if spec.tie_word_embeddings:
            self.lm_head.weight = self.embed.weight

    @property
    def kinds(self) -> tuple[LayerSpec, ...]:
        """What each of ``layers`` is: those of one kind share their compiled form."""
        return self.spec.layers

    def caches_of_layers(self, kv_cache: KVCache) -> Sequence[tuple[Any, Any]]:
        """What each of ``layers`` is given of the cache: its own keys and values."""
        return kv_cache

    def make_buffers(self, device: torch.device) -> None:
        """What depends on the parameters' dtype: the scale of the embeddings is rounded to it, as Gemma's is."""
        self._embed_scale = float(torch.tensor(self.spec.embed_scale, dtype=self.embed.weight.dtype, device="cpu"))

    def embed_tokens(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """What goes into the first layer: ``[tokens] int64`` twice to ``[tokens, hidden_size]``."""
        return self.add_positions(self.embed_only(token_ids), positions)

    def embed_only(self, token_ids: Tensor) -> Tensor:
        """Embeddings of ``token_ids``, scaled where the model does that, without positions."""
        x: Tensor = self.embed(token_ids)
        return x if self._embed_scale == 1.0 else x * self._embed_scale

    def add_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """Embeddings ``[tokens, hidden_size]`` with learned positions, where the model has them."""
        return x + self.embed_positions(positions) if self.spec.num_learned_positions else x

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[rows, hidden_size]`` to logits ``[rows, vocab_size]`` in the model's dtype."""
        logits: Tensor = self.lm_head(hidden)
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        return capped(logits, self.spec.logit_softcap or 0.0)


@lru_cache(maxsize=8)
def count_parameters(spec: ModelSpec, build: Callable[[ModelSpec], Any] = Decoder) -> int:
    """Elements of all parameters of what ``build`` makes of ``spec``; a tied head counts once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(spec).parameters())
