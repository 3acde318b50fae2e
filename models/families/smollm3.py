"""SmolLM3: Llama's shape; every fourth layer has no positions."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import (
    layer_kinds,
    llama_like,
    window_size,
    windows_of_kinds,
    with_ropes,
    with_windows,
)
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec


def smollm3_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a SmolLM3 ``config.json`` describes."""
    config = ConfigJson(values)
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    spec = llama_like(
        config,
        "SmolLM3ForCausalLM",
        default_theta=2e6,
        default_tied=True,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=mlp_bias,
    )
    rotates = _rotating_layers(config, len(spec.layers))
    spec = with_ropes(
        spec, [layer.attention.rope if on else None for layer, on in zip(spec.layers, rotates, strict=True)]
    )
    window = window_size(config)
    switched = window and config.flag("use_sliding_window", False)  # decides where layer_types does not
    default = ["sliding_attention" if switched and not on else "full_attention" for on in rotates]
    kinds = layer_kinds(config, len(spec.layers), default)
    return with_windows(spec, windows_of_kinds(config, kinds, window))


def _rotating_layers(config: ConfigJson, num_layers: int) -> list[bool]:
    """``no_rope_layers`` holds 1 where a layer does rotate."""
    flags = config.values.get("no_rope_layers")
    if flags is None:
        interval = config.integer("no_rope_layer_interval", 1, 1024, 4)
        return [(index + 1) % interval != 0 for index in range(num_layers)]
    if not isinstance(flags, list) or len(flags) != num_layers or any(flag not in (0, 1) for flag in flags):
        raise config.refusal("no_rope_layers", f"{num_layers} times 0 or 1")
    return [bool(flag) for flag in flags]


FAMILY = Family(
    "smollm3", ("SmolLM3ForCausalLM",), smollm3_spec, llama.RULES, llama.IGNORED,
    about="Llama's shape; some layers have no positions",
)  # fmt: skip
