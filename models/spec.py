"""A whole model as frozen data: what a family file produces and ``Decoder`` is built from.

Knows sizes and mechanisms; knows no weights, no checkpoint names and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ostinato.layers.specs import (
    AlibiSpec,
    AttentionSpec,
    ClampedGlu,
    FfnSpec,
    MoeSpec,
    NormSpec,
    RopeScaling,
    RopeSpec,
    RoutingSpec,
)

__all__ = [
    "PRE_NORMS",
    "AlibiSpec",
    "AttentionSpec",
    "ClampedGlu",
    "FfnSpec",
    "LayerSpec",
    "ModelSpec",
    "MoeSpec",
    "NormSpec",
    "RopeScaling",
    "RopeSpec",
    "RoutingSpec",
]

PRE_NORMS = frozenset({"pre_attn", "pre_ffn"})
"""Where most layers normalise. The other places are ``post_attn`` and ``post_ffn``."""


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: attention and a feed-forward part, each added to what came in.

    ``norms`` names the places of its norms. ``parallel`` feeds both parts the same input; without a ``pre_ffn`` norm
    both get the one normalised input. ``residual_scale`` multiplies what each part adds.
    """

    attention: AttentionSpec
    ffn: FfnSpec | MoeSpec
    norms: frozenset[str] = PRE_NORMS
    parallel: bool = False
    residual_scale: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model. ``dtype`` is the checkpoint's own, by torch's name ("bfloat16").

    ``embed_scale`` multiplies the embeddings; ``num_learned_positions`` (0: none) learned ones are added to them;
    logits are multiplied by ``logit_scale`` and kept within ``logit_softcap``.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tie_word_embeddings: bool
    max_position_embeddings: int
    dtype: str
    embed_scale: float = 1.0
    num_learned_positions: int = 0
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    @property
    def kv_elements_per_token(self) -> int:
        """Key and value elements of one token over all layers; times the dtype's bytes = KV bytes per token."""
        return sum(2 * layer.attention.kv_size for layer in self.layers)
