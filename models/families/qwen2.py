"""Qwen2 and Qwen2.5: Llama's shape with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import llama_like, switched_windows, with_windows
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec


def qwen2_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Qwen2 ``config.json`` describes."""
    config = ConfigJson(values)
    spec = llama_like(config, "Qwen2ForCausalLM", qkv_bias=True)
    first = config.integer("max_window_layers", 0, 1 << 20, 28)
    return with_windows(spec, switched_windows(config, len(spec.layers), first))


FAMILY = Family(
    "qwen2", ("Qwen2ForCausalLM",), qwen2_spec, llama.RULES, llama.IGNORED,
    about="Llama's shape with biases on queries, keys and values; windows by layer",
)  # fmt: skip
