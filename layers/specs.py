"""What a layer is, as frozen data: the vocabulary in which a model family describes itself.

Knows no tensor and no checkpoint. ``models.spec`` composes these into a whole model; the modules of this folder are
built from them. Sizes are element counts, scales are dimensionless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NormSpec:
    """Root-mean-square normalisation (Zhang & Sennrich 2019): ``weight * x / sqrt(mean(x^2) + eps)``."""

    eps: float


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    ``linear`` (Chen et al. 2023) divides them all; ``llama3`` divides by wavelength bands; ``yarn`` (Peng et al. 2023)
    blends by correction dimensions and scales cos and sin by ``attention_factor``.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions (Su et al. 2021), half-split: the first ``rotary_dim`` of each head's dimensions rotate."""

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention: ``num_heads`` query heads share ``num_kv_heads`` key and value heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together (and of all value heads)."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class FfnSpec:
    """Gated feed-forward (Shazeer 2020): ``down(activation(gate(x)) * up(x))``."""

    intermediate_size: int
    activation: str
    bias: bool = False
