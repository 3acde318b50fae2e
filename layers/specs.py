"""What a layer is, as frozen data: the vocabulary in which a model family describes itself.

Knows no tensor and no checkpoint. ``models.spec`` composes these into a whole model; the modules of this folder are
built from them. Sizes are element counts, scales are dimensionless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NormSpec:
    """How activations are normalised.

    ``rms`` (Zhang & Sennrich 2019): ``weight * x / sqrt(mean(x^2) + eps)``; ``gemma``: the same with ``1 + weight``,
    all in fp32; ``layer`` (Ba et al. 2016): mean and variance, with a ``bias`` or without.
    """

    eps: float
    kind: Literal["rms", "gemma", "layer"] = "rms"
    bias: bool = False


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    ``linear`` (Chen et al. 2023) divides them all; ``llama3`` divides by wavelength bands; ``yarn`` (Peng et al. 2023)
    blends by correction dimensions; ``longrope`` (Ding et al. 2024) divides each by a factor of its own, from one of
    two lists: ``short_factors`` up to the original length, else ``long_factors``. ``yarn`` and ``longrope`` scale cos
    and sin by ``attention_factor``.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float
    original_max_position: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions (Su et al. 2021): the first ``rotary_dim`` of each head's dimensions rotate.

    Pairs are dimension i and i + rotary_dim / 2 (half-split), or with ``interleaved`` 2i and 2i + 1.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None
    interleaved: bool = False


@dataclass(frozen=True)
class AlibiSpec:
    """Linear biases in place of positions (Press et al. 2022): ``slope * (key position - query position)``.

    Slopes fall from ``2^(-max_bias / n)`` to ``2^-max_bias``; ``scaled``: the bias is added before the softmax scale.
    """

    max_bias: float = 8.0
    scaled: bool = False


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention: ``num_heads`` query heads share ``num_kv_heads`` key and value heads.

    ``window``: a query sees that many tokens, itself included. ``softcap``: scores become ``c tanh(scores / c)``.
    ``sinks``: a learned score per head takes part in the softmax and yields nothing. ``qk_norm``: queries and keys are
    normalised by ``head`` or over their ``full`` width. ``clip_qkv``: the projection is clamped to +- that.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    alibi: AlibiSpec | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    clip_qkv: float | None = None

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together (and of all value heads)."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class ClampedGlu:
    """gpt-oss' gate: ``(clamp(up) + beta) * g * sigmoid(alpha * g)``, g and up clamped at ``limit``."""

    alpha: float = 1.702
    limit: float = 7.0
    beta: float = 1.0


@dataclass(frozen=True)
class FfnSpec:
    """Feed-forward network: ``down(activation(gate(x)) * up(x))`` (Shazeer 2020), or ``down(activation(up(x)))``.

    ``clamped`` takes the place of ``activation`` where both halves are clamped first.
    """

    intermediate_size: int
    activation: str
    bias: bool = False
    gated: bool = True
    clamped: ClampedGlu | None = None


@dataclass(frozen=True)
class RoutingSpec:
    """How a token's experts are chosen and weighted.

    ``score``: ``softmax`` over all experts, then the best; ``topk_softmax``: the best logits, then a softmax of those;
    ``sigmoid`` of each. ``correction_bias``: a learned bias takes part in the choice, not in the weights.
    ``renormalise``: the weights are divided by their sum.
    """

    score: Literal["softmax", "topk_softmax", "sigmoid"]
    renormalise: bool = False
    correction_bias: bool = False
    bias: bool = False


@dataclass(frozen=True)
class MoeSpec:
    """``num_experts`` gated feed-forward networks, of which each token takes ``top_k``."""

    num_experts: int
    top_k: int
    intermediate_size: int
    activation: str
    routing: RoutingSpec
    bias: bool = False
    clamped: ClampedGlu | None = None
