"""A whole model as frozen data: what a family file produces and ``Decoder`` is built from.

Knows sizes and mechanisms; knows no weights, no checkpoint names and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ostinato.layers.specs import AttentionSpec, FfnSpec, NormSpec, RopeScaling, RopeSpec

__all__ = ["AttentionSpec", "FfnSpec", "LayerSpec", "ModelSpec", "NormSpec", "RopeScaling", "RopeSpec"]


@dataclass(frozen=True)
class LayerSpec:
    """One pre-norm decoder layer: ``x += attention(norm(x)); x += ffn(norm(x))``."""

    attention: AttentionSpec
    ffn: FfnSpec


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model. ``dtype`` is the checkpoint's own, by torch's name ("bfloat16")."""

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tie_word_embeddings: bool
    max_position_embeddings: int
    dtype: str

    @property
    def kv_elements_per_token(self) -> int:
        """Key and value elements of one token over all layers; times the dtype's bytes = KV bytes per token."""
        return sum(2 * layer.attention.kv_size for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters; a tied head is counted once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.hidden_size + sum(self._layer_parameters(layer) for layer in self.layers)

    def _layer_parameters(self, layer: LayerSpec) -> int:
        hidden, attention, ffn = self.hidden_size, layer.attention, layer.ffn
        qkv = attention.q_size + 2 * attention.kv_size
        count = 2 * hidden + qkv * hidden + attention.q_size * hidden + 3 * ffn.intermediate_size * hidden
        count += qkv * attention.qkv_bias + hidden * attention.o_bias
        count += 2 * attention.head_dim * attention.qk_norm
        return count + (2 * ffn.intermediate_size + hidden) * ffn.bias
