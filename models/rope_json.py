"""Rotary positions out of config.json, whichever transformers wrote it.

Version 5 keeps all of it in ``rope_parameters``; version 4 had ``rope_theta`` beside ``rope_scaling``, whose kind is
called ``rope_type`` or, older, ``type``. Names and defaults are those of transformers' ``modeling_rope_utils``.
"""

from __future__ import annotations

import math

from ostinato.layers.specs import RopeScaling, RopeSpec
from ostinato.models.config_json import ConfigJson

MAX_POSITIONS = 1 << 24
_LARGEST = 1e12

_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_SCALED = _ALWAYS | {"factor", "original_max_position_embeddings"}
_YARN = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"}
_KEYS = {
    "default": _ALWAYS,
    "linear": _SCALED,
    "llama3": _SCALED | {"low_freq_factor", "high_freq_factor"},
    "yarn": _SCALED | _YARN,
    "longrope": _SCALED | {"short_factor", "long_factor", "attention_factor"},
}


def rope_spec(config: ConfigJson, head_dim: int, default_theta: float = 10_000.0) -> RopeSpec:
    """The rotary positions ``config`` asks for. A kind or a setting that is not known is refused, never ignored."""
    given = [section for key in ("rope_parameters", "rope_scaling") if (section := config.section(key))]
    specs = {_parse(config, section, head_dim, default_theta) for section in given or [ConfigJson({}, config.place)]}
    if len(specs) > 1:
        raise config.refusal("rope_scaling", "the same as in rope_parameters")
    return specs.pop()


def _parse(config: ConfigJson, rope: ConfigJson, head_dim: int, default_theta: float) -> RopeSpec:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "su" or (kind == "yarn" and rope.has("short_factor")):
        kind = "longrope"  # what Phi-3's first files called it
    if kind not in _KEYS:
        raise rope.refusal("rope_type", f"one of {', '.join(_KEYS)}", kind)
    if unknown := sorted(key for key in rope.values if key not in _KEYS[kind] and rope.has(key)):
        raise rope.refusal(unknown[0], f"no such setting for {kind!r} positions")
    theta = rope.number("rope_theta", 1.0001, _LARGEST, config.number("rope_theta", 1.0001, _LARGEST, default_theta))
    partial = rope.number("partial_rotary_factor", 0, 1, config.number("partial_rotary_factor", 0, 1, 1.0))
    rotary_dim = int(head_dim * partial)
    if rotary_dim < 2 or rotary_dim % 2:
        raise config.refusal("head_dim", "an even number of rotated dimensions, 2 or more", rotary_dim)
    scaling = _scaling(config, rope, kind)
    if scaling is not None and scaling.kind == "longrope":
        for key, factors in (("short_factor", scaling.short_factors), ("long_factor", scaling.long_factors)):
            if len(factors) != rotary_dim // 2:
                raise rope.refusal(key, f"{rotary_dim // 2} factors", len(factors))
    return RopeSpec(theta, rotary_dim, scaling)


def _scaling(config: ConfigJson, rope: ConfigJson, kind: str) -> RopeScaling | None:
    """The scaling of ``kind``; the original length may stand beside the section (Phi-3) and then counts."""
    positions = config.integer("max_position_embeddings", 1, MAX_POSITIONS, 2048)
    key = "original_max_position_embeddings"
    original = config.integer(key, 1, MAX_POSITIONS, rope.integer(key, 1, MAX_POSITIONS, positions))
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor", 1, _LARGEST), original)
    if kind == "llama3":
        return _llama3(rope, original)
    if kind == "yarn":
        return _yarn(rope, original, positions)
    if kind == "longrope":
        return _longrope(rope, original, positions)
    return None


def _llama3(rope: ConfigJson, original: int) -> RopeScaling:
    low, high = (rope.number(f"{name}_freq_factor", 1e-6, _LARGEST) for name in ("low", "high"))
    if high <= low:
        raise rope.refusal("high_freq_factor", f"more than low_freq_factor = {low:g}")
    factor = rope.number("factor", 1, _LARGEST)
    return RopeScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high)


def _yarn(rope: ConfigJson, original: int, positions: int) -> RopeScaling:
    """Without a factor it is the ratio of the lengths; cos and sin grow by ``0.1 ln(factor) + 1`` (section 3.4)."""
    factor = rope.number("factor", 1, _LARGEST, max(1.0, positions / original))
    mscale, mscale_all = (rope.number(key, 0, _LARGEST, 0.0) for key in ("mscale", "mscale_all_dim"))
    attention = 0.1 * math.log(factor) + 1.0
    if mscale and mscale_all:
        attention = (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * mscale_all * math.log(factor) + 1.0)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=rope.number("beta_fast", 1e-6, _LARGEST, 32.0),
        beta_slow=rope.number("beta_slow", 1e-6, _LARGEST, 1.0),
        attention_factor=rope.number("attention_factor", 1e-6, _LARGEST, attention),
        truncate=rope.flag("truncate", True),
    )


def _longrope(rope: ConfigJson, original: int, positions: int) -> RopeScaling:
    """Without an attention factor it is ``sqrt(1 + ln(factor) / ln(original))`` (Ding et al. 2024, section 4.2)."""
    factor = rope.number("factor", 1, _LARGEST, max(1.0, positions / original))
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeScaling(
        "longrope",
        factor,
        original,
        attention_factor=rope.number("attention_factor", 1e-6, _LARGEST, attention),
        short_factors=_factors(rope, "short_factor"),
        long_factors=_factors(rope, "long_factor"),
    )


def _factors(rope: ConfigJson, key: str) -> tuple[float, ...]:
    values = rope.values.get(key)
    if not isinstance(values, list) or not values or not all(_is_factor(value) for value in values):
        raise rope.refusal(key, "a list of positive numbers")
    return tuple(float(value) for value in values)


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LARGEST
