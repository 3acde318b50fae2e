"""What the families have in common: reading a Llama-shaped config.json, and varying the spec it gives.

Knows config.json's names and the specs; knows no tensor names. A setting that would change the result and that nothing
here computes is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ostinato.layers.activation import ACTIVATIONS
from ostinato.models.config_json import ConfigJson
from ostinato.models.rope_json import MAX_POSITIONS, rope_spec
from ostinato.models.spec import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec

MAX_HIDDEN, MAX_WIDTH, MAX_VOCABULARY, MAX_LAYERS, MAX_HEADS, MAX_EXPERTS = 1 << 17, 1 << 20, 1 << 22, 1024, 1024, 4096


def llama_like(
    config: ConfigJson,
    architecture: str,
    *,
    default_head_dim: int | None = None,
    default_theta: float = 10_000.0,
    default_eps: float = 1e-6,
    default_tied: bool = False,
    activation_key: str = "hidden_act",
    default_activation: str = "silu",
    mlp_bias: bool = False,
    partly_rotated: bool = False,
    rope: RopeSpec | None = None,
    **attention: Any,
) -> ModelSpec:
    """RMS norms, rotary attention, gated feed-forward, all layers alike; ``attention`` are fields of its spec.

    ``rope`` takes the place of what config.json says of positions; ``partly_rotated``: heads may be.
    """
    refuse_quantised(config)
    hidden_size = config.integer("hidden_size", 1, MAX_HIDDEN)
    heads, kv_heads, head_dim = head_counts(config, hidden_size, default_head_dim)
    rope = rope or rope_spec(config, head_dim, default_theta)
    if rope.rotary_dim != head_dim and not partly_rotated:
        raise config.refusal("partial_rotary_factor", "1, for this architecture", rope.rotary_dim / head_dim)
    attention_spec = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, rope)
    activation = activation_name(config, activation_key, default_activation)
    ffn = FfnSpec(config.integer("intermediate_size", 1, MAX_WIDTH), activation, mlp_bias)
    layer = LayerSpec(replace(attention_spec, **attention), ffn)
    return ModelSpec(
        architecture=architecture,
        vocab_size=config.integer("vocab_size", 1, MAX_VOCABULARY),
        hidden_size=hidden_size,
        layers=(layer,) * config.integer("num_hidden_layers", 1, MAX_LAYERS),
        norm=NormSpec(config.number("rms_norm_eps", 0, 1, default_eps)),
        tie_word_embeddings=config.flag("tie_word_embeddings", default_tied),
        max_position_embeddings=max_positions(config, rope),
        dtype=dtype_name(config),
    )


def head_counts(config: ConfigJson, hidden_size: int, default_head_dim: int | None = None) -> tuple[int, int, int]:
    """Query heads, key and value heads, and the size of one."""
    heads = config.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = config.integer("num_key_value_heads", 1, MAX_HEADS, heads)
    if heads % kv_heads:
        raise config.refusal("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    if "head_dim" not in config.values and default_head_dim:
        return heads, kv_heads, default_head_dim
    if config.has("head_dim"):
        return heads, kv_heads, config.integer("head_dim", 2, 1024)
    return heads, kv_heads, even_share(config, "num_attention_heads", heads, hidden_size)


def even_share(config: ConfigJson, key: str, heads: int, hidden_size: int) -> int:
    """The size of a head where the heads share the hidden size."""
    if hidden_size % heads:
        raise config.refusal(key, f"a divisor of the hidden size {hidden_size} without a head_dim")
    return hidden_size // heads


def activation_name(config: ConfigJson, key: str = "hidden_act", default: str = "silu") -> str:
    """A known activation."""
    name = config.text(key, default)
    if name not in ACTIVATIONS:
        raise config.refusal(key, f"one of {', '.join(ACTIVATIONS)}")
    return name


def dtype_name(config: ConfigJson) -> str:
    """What the weights are in: ``dtype``, in older files ``torch_dtype``; float32 when the file does not say."""
    key = "dtype" if config.has("dtype") else "torch_dtype"
    name = config.text(key, "float32")
    if name not in ("float32", "bfloat16", "float16"):
        raise config.refusal(key, "float32, bfloat16 or float16")
    return name


def max_positions(config: ConfigJson, rope: RopeSpec | None) -> int:
    """The longest sequence. Qwen's instructions add yarn without raising the number: the extended length counts too."""
    positions = config.integer("max_position_embeddings", 1, MAX_POSITIONS, 2048)
    scaling = rope.scaling if rope else None
    if scaling is not None and scaling.kind == "yarn":
        return max(positions, min(int(scaling.original_max_position * scaling.factor), MAX_POSITIONS))
    return positions


def refuse_quantised(config: ConfigJson) -> None:
    """Weights in a format that nothing here reads yet."""
    for key in ("quantization_config", "compression_config"):
        if config.has(key):
            raise config.refusal(key, "none (quantised weights are not supported)")


def refuse_unless(config: ConfigJson, **wanted: object) -> None:
    """Settings that must be absent or equal to what is implemented."""
    for key, value in wanted.items():
        if config.has(key) and config.values[key] != value:
            raise config.refusal(key, f"{value!r}, for this architecture" if value is not None else "nothing here")


# What varies from layer to layer.


def with_layers(spec: ModelSpec, layers: Sequence[LayerSpec]) -> ModelSpec:
    """``spec`` with other layers."""
    return replace(spec, layers=tuple(layers))


def with_windows(spec: ModelSpec, windows: Sequence[int | None]) -> ModelSpec:
    """``spec`` with a sliding window per layer."""
    layers = zip(spec.layers, windows, strict=True)
    return with_layers(spec, [_with_attention(layer, window=window) for layer, window in layers])


def with_ropes(spec: ModelSpec, ropes: Sequence[RopeSpec | None]) -> ModelSpec:
    """``spec`` with rotary positions of its own in each layer, or none."""
    layers = zip(spec.layers, ropes, strict=True)
    return with_layers(spec, [_with_attention(layer, rope=rope) for layer, rope in layers])


def _with_attention(layer: LayerSpec, **fields: Any) -> LayerSpec:
    return replace(layer, attention=replace(layer.attention, **fields))


def layer_kinds(config: ConfigJson, num_layers: int, default: Sequence[str]) -> list[str]:
    """``layer_types``, one of full_attention and sliding_attention for each layer."""
    kinds = config.values.get("layer_types")
    kinds = list(default) if kinds is None else kinds
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in known for kind in kinds):
        raise config.refusal("layer_types", f"{num_layers} times one of {' and '.join(known)}")
    return kinds


def window_size(config: ConfigJson, default: int | None = None) -> int | None:
    """``sliding_window`` in tokens; ``default`` where config.json does not mention it."""
    if "sliding_window" not in config.values:
        return default
    return config.integer("sliding_window", 1, MAX_POSITIONS) if config.has("sliding_window") else None


def windows_of_kinds(config: ConfigJson, kinds: Sequence[str], window: int | None) -> list[int | None]:
    """The window of each layer by its kind."""
    if window is None and "sliding_attention" in kinds:
        raise config.refusal("sliding_window", "a number of tokens, because layer_types has sliding_attention")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def switched_windows(config: ConfigJson, num_layers: int, first: int) -> list[int | None]:
    """Qwen's way: none unless ``use_sliding_window``; then from layer ``first`` on, or as ``layer_types`` says."""
    window = window_size(config) if config.flag("use_sliding_window", False) else None
    default = ["sliding_attention" if window and index >= first else "full_attention" for index in range(num_layers)]
    kinds = layer_kinds(config, num_layers, default)
    return windows_of_kinds(config, kinds, window)


def uniform_windows(config: ConfigJson, num_layers: int) -> list[int | None]:
    """Qwen3-MoE's way: in all layers if ``use_sliding_window``; ``layer_types`` that say otherwise are refused."""
    window = window_size(config, 4096) if config.flag("use_sliding_window", False) else None
    kind = "sliding_attention" if window else "full_attention"
    if set(layer_kinds(config, num_layers, [kind] * num_layers)) != {kind}:
        raise config.refusal("layer_types", f"{kind} in all layers, by use_sliding_window and sliding_window")
    return [window] * num_layers
