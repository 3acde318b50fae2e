"""Qwen3-MoE: Qwen3 with experts, in all layers but those that config.json keeps dense."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import activation_name, llama_like, uniform_windows, with_windows
from ostinato.models.families.family import Family
from ostinato.models.families.moe import expert_rules, fused_expert_rules, moe_spec, with_experts
from ostinato.models.spec import ModelSpec, RoutingSpec
from ostinato.models.weights.rules import OneOf, Rule

_PLACE = f"{llama.LAYER}.mlp"
RULES = (
    *llama.OUTER_RULES,
    *llama.NORM_RULES,
    *llama.ATTENTION_RULES,
    *llama.QK_NORM_RULES,
    Rule(f"{_PLACE}.gate", "layers.{layer}.ffn.router"),
    OneOf((expert_rules(_PLACE, "gate_proj", "up_proj", "down_proj"), fused_expert_rules(_PLACE), llama.MLP_RULES)),
)


def qwen3_moe_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Qwen3-MoE ``config.json`` describes."""
    config = ConfigJson(values)
    bias = config.flag("attention_bias", False)
    spec = llama_like(config, "Qwen3MoeForCausalLM", qk_norm="head", qkv_bias=bias, o_bias=bias)
    routing = RoutingSpec("softmax", renormalise=config.flag("norm_topk_prob", False))
    moe = moe_spec(
        config,
        activation_name(config),
        routing,
        width_key="moe_intermediate_size",
        default_experts=128,
        default_top_k=8,
    )
    num_layers = len(spec.layers)
    step = config.integer("decoder_sparse_step", 1, 1024, 1)
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(index, int) for index in dense):
        raise config.refusal("mlp_only_layers", "a list of layer numbers")
    sparse = {index: index not in dense and (index + 1) % step == 0 for index in range(num_layers)}
    return with_windows(with_experts(spec, moe, sparse), uniform_windows(config, num_layers))


FAMILY = Family(
    "qwen3_moe", ("Qwen3MoeForCausalLM",), qwen3_moe_spec, RULES, llama.IGNORED,
    about="Qwen3 with experts, in all layers or some",
)  # fmt: skip
