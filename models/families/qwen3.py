"""Qwen3, dense: Llama's shape with normalised query and key heads."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.rules import Rule

RULES = (
    *llama.RULES,
    Rule("model.layers.{layer}.self_attn.q_norm", "layers.{layer}.attention.q_norm"),
    Rule("model.layers.{layer}.self_attn.k_norm", "layers.{layer}.attention.k_norm"),
)


def qwen3_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Qwen3 ``config.json`` describes."""
    config = ConfigJson(values)
    return llama.rms_gated_spec(
        config, "Qwen3ForCausalLM", window=_has_window(config), default_head_dim=128, qk_norm=True
    )


def _has_window(config: ConfigJson) -> bool:
    """Switched on, and some layer is at ``max_window_layers`` or above; ``layer_types`` are looked at elsewhere."""
    if not config.flag("use_sliding_window", False) or not config.has("sliding_window") or config.has("layer_types"):
        return False
    return config.integer("max_window_layers", 0, 1 << 20, 28) < config.integer("num_hidden_layers", 1, 1024)


FAMILY = Family("qwen3", ("Qwen3ForCausalLM",), qwen3_spec, RULES, llama.IGNORED)
