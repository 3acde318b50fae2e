"""Phi-3 and Phi-4: Llama's shape with fused projections, long texts by longrope, partly rotated heads."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import llama_like, window_size, with_windows
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.rules import Rule

RULES = (
    *llama.OUTER_RULES,
    *llama.NORM_RULES,
    Rule(f"{llama.LAYER}.self_attn.qkv_proj", "layers.{layer}.attention.qkv"),
    Rule(f"{llama.LAYER}.self_attn.o_proj", "layers.{layer}.attention.o"),
    Rule(f"{llama.LAYER}.mlp.gate_up_proj", "layers.{layer}.ffn.gate_up"),
    Rule(f"{llama.LAYER}.mlp.down_proj", "layers.{layer}.ffn.down"),
)


def phi3_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Phi-3 ``config.json`` describes."""
    config = ConfigJson({"original_max_position_embeddings": 4096, **values})  # as transformers, beside rope settings
    spec = llama_like(config, "Phi3ForCausalLM", default_eps=1e-5, partly_rotated=True)
    return with_windows(spec, [window_size(config)] * len(spec.layers))


FAMILY = Family(
    "phi3", ("Phi3ForCausalLM",), phi3_spec, RULES, llama.IGNORED,
    about="Llama's shape with longrope, partly rotated heads and a sliding window",
)  # fmt: skip
