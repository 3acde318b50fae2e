"""OLMo 2: norms behind attention and feed-forward, queries and keys normalised over their whole width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import llama_like, with_layers
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.rules import Rule

RULES = (
    *llama.OUTER_RULES,
    Rule(f"{llama.LAYER}.post_attention_layernorm", "layers.{layer}.post_attn_norm"),
    Rule(f"{llama.LAYER}.post_feedforward_layernorm", "layers.{layer}.post_ffn_norm"),
    *llama.ATTENTION_RULES,
    *llama.QK_NORM_RULES,
    *llama.MLP_RULES,
)


def olmo2_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that an OLMo 2 ``config.json`` describes."""
    config = ConfigJson(values)
    bias = config.flag("attention_bias", False)
    spec = llama_like(config, "Olmo2ForCausalLM", default_eps=1e-5, qk_norm="full", qkv_bias=bias, o_bias=bias)
    norms = frozenset({"post_attn", "post_ffn"})
    return with_layers(spec, [replace(layer, norms=norms) for layer in spec.layers])


FAMILY = Family(
    "olmo2", ("Olmo2ForCausalLM",), olmo2_spec, RULES, llama.IGNORED,
    about="Llama's shape; queries and keys are normalised over their whole width",
)  # fmt: skip
