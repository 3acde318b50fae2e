"""Granite: Llama's shape with four multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import llama_like, with_layers
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec


def granite_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Granite ``config.json`` describes."""
    config = ConfigJson(values)
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    scale = config.number("attention_multiplier", 0, 1e6, 1.0)
    spec = llama_like(config, "GraniteForCausalLM", scale=scale, qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)
    residual = config.number("residual_multiplier", 0, 1e6, 1.0)
    return replace(
        with_layers(spec, [replace(layer, residual_scale=residual) for layer in spec.layers]),
        embed_scale=config.number("embedding_multiplier", 0, 1e6, 1.0),
        logit_scale=1.0 / config.number("logits_scaling", 1e-6, 1e6, 1.0),
    )


FAMILY = Family(
    "granite", ("GraniteForCausalLM",), granite_spec, llama.RULES, llama.IGNORED,
    about="Llama's shape with four multipliers",
)  # fmt: skip
