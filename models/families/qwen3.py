"""Qwen3, dense: Llama's shape with normalised query and key heads."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import llama_like, switched_windows, with_windows
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec

RULES = (*llama.RULES, *llama.QK_NORM_RULES)


def qwen3_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Qwen3 ``config.json`` describes."""
    config = ConfigJson(values)
    bias = config.flag("attention_bias", False)
    spec = llama_like(config, "Qwen3ForCausalLM", default_head_dim=128, qk_norm="head", qkv_bias=bias, o_bias=bias)
    first = config.integer("max_window_layers", 0, 1 << 20, 28)
    return with_windows(spec, switched_windows(config, len(spec.layers), first))


FAMILY = Family(
    "qwen3", ("Qwen3ForCausalLM",), qwen3_spec, RULES, llama.IGNORED,
    about="Llama's shape with normalised heads; windows by layer",
)  # fmt: skip
