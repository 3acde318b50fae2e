"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import activation_name, llama_like, window_size, with_windows
from ostinato.models.families.family import Family
from ostinato.models.families.moe import expert_rules, fused_expert_rules, moe_spec, with_experts
from ostinato.models.spec import ModelSpec, RoutingSpec
from ostinato.models.weights.rules import OneOf, Rule

PLACE = f"{llama.LAYER}.block_sparse_moe"
RULES = (
    *llama.OUTER_RULES,
    *llama.NORM_RULES,
    *llama.ATTENTION_RULES,
    Rule(f"{PLACE}.gate", "layers.{layer}.ffn.router"),
    OneOf((expert_rules(PLACE, "w1", "w3", "w2"), fused_expert_rules(PLACE))),
)
RENAMES = ((r"^(model\.layers\.\d+)\.mlp\.", r"\1.block_sparse_moe."),)  # as transformers 5 holds them in memory


def mixtral_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Mixtral ``config.json`` describes."""
    config = ConfigJson(values)
    spec = llama_like(config, "MixtralForCausalLM", default_theta=1e6, default_eps=1e-5)
    routing = RoutingSpec("softmax", renormalise=True)
    moe = moe_spec(config, activation_name(config), routing, default_experts=8, default_top_k=2)
    return with_windows(with_experts(spec, moe), [window_size(config)] * len(spec.layers))


FAMILY = Family(
    "mixtral", ("MixtralForCausalLM",), mixtral_spec, RULES, llama.IGNORED, RENAMES,
    about="Mistral with experts in every layer",
)  # fmt: skip
