"""Rotary position embedding: a table of cosines and sines made once per model, and its application.

A pair (a, b) becomes ``(a cos - b sin, b cos + a sin)``. Half-split (GPT-NeoX) pairs the two halves of what rotates,
interleaved (GPT-J) its neighbours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ostinato.layers.specs import RopeScaling, RopeSpec


def rope_table(spec: RopeSpec, max_positions: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Cosines and sines, each ``[max_positions, rotary_dim / 2]`` in fp32, scaled by the attention factor.

    ``longrope`` has one list of factors for short texts and one for long: ``max_positions`` decides, for all texts.
    """
    inverse = inverse_frequencies(spec, max_positions).to(device)
    angles = torch.arange(max_positions, dtype=torch.float32, device=device)[:, None] * inverse
    factor = spec.scaling.attention_factor if spec.scaling else 1.0
    return angles.cos() * factor, angles.sin() * factor


def inverse_frequencies(spec: RopeSpec, max_positions: int = 0) -> Tensor:
    """``theta^(-2i / rotary_dim)`` for each pair i, after scaling: ``[rotary_dim / 2]`` in fp32."""
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32, device="cpu") / spec.rotary_dim
    inverse = 1.0 / (spec.theta**exponents)
    if spec.scaling is None:
        return inverse
    if spec.scaling.kind == "linear":
        return inverse / spec.scaling.factor
    if spec.scaling.kind == "llama3":
        return _llama3(inverse, spec.scaling)
    if spec.scaling.kind == "longrope":
        long = max_positions > spec.scaling.original_max_position
        return inverse / torch.tensor(spec.scaling.long_factors if long else spec.scaling.short_factors)
    return _yarn(inverse, spec, spec.scaling)


def _llama3(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """NTK by parts (Llama 3.1): long wavelengths are divided, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / inverse
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((scaling.original_max_position / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * inverse / scaling.factor + keep * inverse


def _yarn(inverse: Tensor, spec: RopeSpec, scaling: RopeScaling) -> Tensor:
    """YaRN (Peng et al. 2023, eq. 17-23): a ramp over dimensions between dividing and keeping."""

    def correction_dim(rotations: float) -> float:
        log_ratio = math.log(scaling.original_max_position / (rotations * 2 * math.pi))
        return spec.rotary_dim * log_ratio / (2 * math.log(spec.theta))

    low, high = correction_dim(scaling.beta_fast), correction_dim(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    pairs = torch.arange(spec.rotary_dim // 2, dtype=torch.float32, device="cpu")
    divide = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return inverse / scaling.factor * divide + inverse * (1 - divide)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate ``x [rows, heads, head_dim]`` by its rows' ``cos, sin [rows, rotary_dim / 2]``; the rest passes."""
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turning = x[..., : 2 * half].float()
    if interleaved:
        a, b = turning[..., ::2], turning[..., 1::2]
        rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
    else:
        a, b = turning[..., :half], turning[..., half:]
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
    if 2 * half == x.shape[-1]:
        return rotated
    return torch.cat([rotated, x[..., 2 * half :]], dim=-1)
