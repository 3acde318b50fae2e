"""MiniMax-M2: experts chosen by sigmoid scores and a correction bias, queries and keys normalised over their width."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama, mixtral
from ostinato.models.families.common import activation_name, head_counts, llama_like, refuse_unless
from ostinato.models.families.family import Family
from ostinato.models.families.moe import moe_spec, with_experts
from ostinato.models.spec import ModelSpec, RoutingSpec
from ostinato.models.weights.rules import Rule

RULES = (
    *mixtral.RULES,
    *llama.QK_NORM_RULES,
    Rule(f"{mixtral.PLACE}.e_score_correction_bias", "layers.{layer}.ffn.correction_bias"),
)


def minimax_m2_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a MiniMax-M2 ``config.json`` describes."""
    config = ConfigJson(values)
    refuse_unless(
        config, shared_intermediate_size=0, scoring_func="sigmoid", use_qk_norm=True, qk_norm_type="per_layer"
    )
    head_dim = head_counts(config, config.integer("hidden_size", 1, 1 << 17), 128)[2]
    if config.has("rotary_dim") and not config.has("partial_rotary_factor"):  # how the released files say it
        rotary_dim = config.integer("rotary_dim", 2, head_dim)
        config = ConfigJson({**values, "partial_rotary_factor": rotary_dim / head_dim})
    spec = llama_like(
        config, "MiniMaxM2ForCausalLM", default_head_dim=128, default_theta=5e6, qk_norm="full", partly_rotated=True
    )
    routing = RoutingSpec("sigmoid", renormalise=True, correction_bias=True)
    return with_experts(spec, moe_spec(config, activation_name(config), routing, default_experts=256, default_top_k=8))


FAMILY = Family(
    "minimax_m2", ("MiniMaxM2ForCausalLM",), minimax_m2_spec, RULES, (*llama.IGNORED, "*.mtp.*", "mtp.*"),
    mixtral.RENAMES,
    about="experts by sigmoid scores, partly rotated heads, queries and keys normalised over their whole width",
)  # fmt: skip
