"""What the mixture-of-experts families have in common: reading their numbers, and their experts' tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ostinato.models.config_json import ConfigJson
from ostinato.models.families.common import MAX_EXPERTS, MAX_WIDTH
from ostinato.models.spec import LayerSpec, ModelSpec, MoeSpec, RoutingSpec
from ostinato.models.weights.rules import Rule, gate_rows, up_rows


def moe_spec(
    config: ConfigJson,
    activation: str,
    routing: RoutingSpec,
    *,
    width_key: str = "intermediate_size",
    default_experts: int | None = None,
    default_top_k: int | None = None,
) -> MoeSpec:
    """Experts by ``num_experts`` or, as newer files say, ``num_local_experts``."""
    key = "num_experts" if config.has("num_experts") else "num_local_experts"
    num_experts = config.integer(key, 1, MAX_EXPERTS, default_experts)
    top_k = config.integer("num_experts_per_tok", 1, num_experts, default_top_k)
    return MoeSpec(num_experts, top_k, config.integer(width_key, 1, MAX_WIDTH), activation, routing)


def with_experts(spec: ModelSpec, moe: MoeSpec, sparse: Mapping[int, bool] | None = None) -> ModelSpec:
    """``spec`` with ``moe`` in every layer, or in those that ``sparse`` says."""

    def layer_at(index: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, ffn=moe) if sparse is None or sparse[index] else layer

    return replace(spec, layers=tuple(layer_at(index, layer) for index, layer in enumerate(spec.layers)))


def expert_rules(place: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """A tensor per expert, at ``place`` (which says ``{layer}``), by the names of its three projections."""
    return (
        Rule(f"{place}.experts.{{expert}}.{gate}", "layers.{layer}.ffn.gate_up", gate_rows),
        Rule(f"{place}.experts.{{expert}}.{up}", "layers.{layer}.ffn.gate_up", up_rows),
        Rule(f"{place}.experts.{{expert}}.{down}", "layers.{layer}.ffn.down"),
    )


def fused_expert_rules(place: str) -> tuple[Rule, ...]:
    """All experts in one tensor ``[num_experts, rows, cols]``, gate rows before up rows."""
    bare = {"weight": ""}
    return (
        Rule(f"{place}.experts.gate_up_proj", "layers.{layer}.ffn.gate_up", suffixes=bare),
        Rule(f"{place}.experts.down_proj", "layers.{layer}.ffn.down", suffixes=bare),
    )
