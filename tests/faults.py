"""Deliberate mistakes, one at a time, and for each the variant that must show it: what the parity tests are tested by.

A fault changes the spec of a loaded model, or its parameters as a wrong loader would, or a function of the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.layers import alibi, moe
from ostinato.layers.activation import gate_with
from ostinato.models.decoder import Decoder
from ostinato.models.spec import PRE_NORMS, AlibiSpec, ClampedGlu, LayerSpec, ModelSpec

Patches = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """``variant`` with another spec, with changed parameters, or with ``patches`` (dotted names under layers)."""

    variant: str
    spec: Callable[[ModelSpec], ModelSpec] = lambda spec: spec
    parameters: Callable[[Decoder], None] = lambda decoder: None
    patches: Patches | None = None

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the patches in place of what they replace."""
        for name, value in (self.patches or {}).items():
            monkeypatch.setattr(f"ostinato.layers.{name}", value)


# ------------------------------------------------------------------------------------------------- in the spec


def model(variant: str, **changes: Any) -> Fault:
    return Fault(variant, lambda spec: replace(spec, **changes))


def norm(variant: str, **changes: Any) -> Fault:
    return Fault(variant, lambda spec: replace(spec, norm=replace(spec.norm, **changes)))


def layers(variant: str, change: Callable[[LayerSpec], LayerSpec]) -> Fault:
    return Fault(variant, lambda spec: replace(spec, layers=tuple(change(layer) for layer in spec.layers)))


def layer(variant: str, **changes: Any) -> Fault:
    return layers(variant, lambda layer: replace(layer, **changes))


def attention(variant: str, **changes: Any) -> Fault:
    return layers(variant, lambda layer: replace(layer, attention=replace(layer.attention, **changes)))


def ffn(variant: str, **changes: Any) -> Fault:
    return layers(variant, lambda layer: replace(layer, ffn=replace(layer.ffn, **changes)))


def routing(variant: str, **changes: Any) -> Fault:
    return layers(
        variant, lambda layer: replace(layer, ffn=replace(layer.ffn, routing=replace(layer.ffn.routing, **changes)))
    )


def rope(variant: str, **changes: Any) -> Fault:
    """In the layers that rotate."""

    def change(layer: LayerSpec) -> LayerSpec:
        if layer.attention.rope is None:
            return layer
        return replace(layer, attention=replace(layer.attention, rope=replace(layer.attention.rope, **changes)))

    return layers(variant, change)


def scaling(variant: str, **changes: Any) -> Fault:
    def change(layer: LayerSpec) -> LayerSpec:
        rope = replace(layer.attention.rope, scaling=replace(layer.attention.rope.scaling, **changes))
        return replace(layer, attention=replace(layer.attention, rope=rope))

    return layers(variant, change)


def everywhere_as_in(variant: str, index: int, *fields: str) -> Fault:
    """Every layer's attention takes ``fields`` from that of layer ``index``."""

    def change(spec: ModelSpec) -> ModelSpec:
        taken = {field: getattr(spec.layers[index].attention, field) for field in fields}
        return replace(
            spec, layers=tuple(replace(each, attention=replace(each.attention, **taken)) for each in spec.layers)
        )

    return Fault(variant, change)


# ------------------------------------------------------------------------------------------- in the parameters


def parameters(variant: str, name: str, change: Callable[[Tensor, Any], Tensor]) -> Fault:
    """``change(parameter, its layer's spec)`` in place of each parameter of that name within a layer."""

    def apply(decoder: Decoder) -> None:
        for block, spec in zip(decoder.layers, decoder.spec.layers, strict=True):
            parameter = block.get_parameter(name)
            parameter.data = change(parameter.data, spec).contiguous()

    return Fault(variant, parameters=apply)


def heads_as_stored(weight: Tensor, layer: LayerSpec) -> Tensor:
    """GPT-NeoX' ``[q k v]`` of each head, left in that order."""
    by_part = weight.unflatten(0, (3, layer.attention.num_heads, layer.attention.head_dim))
    return by_part.transpose(0, 1).flatten(0, 2)


def groups_as_stored(weight: Tensor, layer: LayerSpec) -> Tensor:
    """Falcon's queries, key and value of each group, left in that order."""
    spec = layer.attention
    q, k, v = weight.split([spec.q_size, spec.kv_size, spec.kv_size])
    parts = [part.unflatten(0, (spec.num_kv_heads, -1)) for part in (q, k, v)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def halves_interleaved(weight: Tensor, layer: LayerSpec) -> Tensor:
    """gpt-oss' gate and up columns, left in turns."""
    return weight.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def query_heads_in_turns(weight: Tensor, layer: LayerSpec) -> Tensor:
    """Query head i shares the key head i mod n, not i div (heads / n). (The output then has other heads, too.)"""
    spec = layer.attention
    queries = weight[: spec.q_size].unflatten(0, (-1, spec.num_kv_heads, spec.head_dim))
    return torch.cat([queries.transpose(0, 1).flatten(0, 2), weight[spec.q_size :]])


def keys_and_values_swapped(weight: Tensor, layer: LayerSpec) -> Tensor:
    q, k, v = weight.split([layer.attention.q_size, layer.attention.kv_size, layer.attention.kv_size])
    return torch.cat([q, v, k])


def positions_one_off(decoder: Decoder) -> None:
    weight = decoder.embed_positions.weight
    weight.data = weight.data.roll(1, 0)


# ------------------------------------------------------------------------------------------------ in functions


def gate_and_up_swapped(activation: str, clamped: ClampedGlu | None, gate: Tensor, up: Tensor) -> Tensor:
    return gate_with(activation, clamped, up, gate)


def gate_clamped_below(activation: str, clamped: ClampedGlu, gate: Tensor, up: Tensor) -> Tensor:
    return gate_with(activation, clamped, gate.clamp(min=-clamped.limit), up)


def slopes_in_descending_order(*args: Any) -> Tensor:
    return alibi.alibi_slopes(*args).sort(descending=True).values


def bias_in_the_weights(logits: Tensor, spec: Any, top_k: int, bias: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = (logits.sigmoid() + bias).topk(top_k)
    return ids, weights / weights.sum(-1, keepdim=True)


_route = moe.route


def weights_of_other_experts(*args: Any) -> tuple[Tensor, Tensor]:
    ids, weights = _route(*args)
    return ids, weights.flip(-1)


FAULTS: dict[str, Fault] = {
    # norms
    "the norms' epsilon of another model": norm("llama2_mha", eps=1e-6),
    "a layer norm's epsilon of another model": norm("gpt2", eps=1e-5),
    "one plus the weight of an RMS norm": norm("llama2_mha", kind="gemma"),
    "no one plus the weight of Gemma's norm": norm("gemma2", kind="rms"),
    "the mean taken off before an RMS norm": norm("qwen3", kind="layer"),
    "layer norms without their bias": norm("gpt_neox", bias=False),
    "no norm after attention and feed-forward": layer("gemma2", norms=PRE_NORMS),
    "no norm of queries and keys": attention("qwen3", qk_norm=None),
    "no norm over all queries and keys": attention("minimax_m2", qk_norm=None),
    # blocks
    "parallel parts one after the other": layer("gpt_neox", parallel=False),
    "sequential parts in parallel": layer("gpt_neox_sequential", parallel=True),
    "attention's norm for the feed-forward part": layer("falcon_40b", norms=frozenset({"pre_attn"})),
    "no residual multiplier": layer("granite", residual_scale=1.0),
    # embeddings and head
    "embeddings not scaled": model("gemma3", embed_scale=1.0),
    "no learned positions": model("gpt2", num_learned_positions=0),
    "learned positions from one": Fault("gpt2", parameters=positions_one_off),
    "logits not scaled": model("granite", logit_scale=1.0),
    "logits not capped": model("gemma2", logit_softcap=None),
    "an untied head tied": model("qwen3_untied", tie_word_embeddings=True),
    # biases
    "no bias of q, k and v": attention("qwen2", qkv_bias=False),
    "no bias of the output projection": attention("qwen3_bias", o_bias=False),
    "no bias of a gated feed-forward part": ffn("llama_bias", bias=False),
    "no bias of a plain feed-forward part": ffn("falcon_rw", bias=False),
    "no bias of the experts": ffn("gpt_oss", bias=False),
    "no bias of the router": routing("gpt_oss", bias=False),
    # attention
    "the scale of the head size": attention("gemma2", scale=16**-0.5),
    "the same scale in every layer": everywhere_as_in("gpt2_inverse_layer", 0, "scale"),
    "scores scaled after all": attention("gpt2_unscaled", scale=16**-0.5),
    "a window one too long": attention("mistral_window", window=9),
    "a window one too short": attention("phi3_window", window=7),
    "no window": attention("mixtral_window", window=None),
    "a window in every layer": everywhere_as_in("qwen3_windows", -1, "window"),
    "scores not capped": attention("gemma2", softcap=None),
    "no sinks": attention("gpt_oss", sinks=False),
    "projections not clipped": attention("mpt_clipped", clip_qkv=None),
    "query heads grouped in turns": parameters("llama3_gqa", "attention.qkv.weight", query_heads_in_turns),
    "keys for values": parameters("mpt", "attention.qkv.weight", keys_and_values_swapped),
    "q, k and v of each head left together": parameters("gpt_neox_unbiased", "attention.qkv.weight", heads_as_stored),
    "q, k and v of each group left together": parameters("falcon_40b", "attention.qkv.weight", groups_as_stored),
    "a stored transpose left so": parameters("gpt2", "attention.o.weight", lambda weight, _: weight.T),
    # positions
    "another theta": rope("codellama", theta=1e4),
    "neighbours rotated in place of halves": rope("llama2_mha", interleaved=True),
    "all dimensions rotated": rope("gpt_neox", rotary_dim=16),
    "half of the dimensions rotated": rope("phi3_partial", rotary_dim=8),
    "frequencies not scaled, linear": rope("llama_linear", scaling=None),
    "frequencies not scaled, llama3": rope("llama_tied", scaling=None),
    "frequencies not scaled, yarn": rope("qwen2_yarn", scaling=None),
    "no attention factor of yarn": scaling("qwen3_yarn", attention_factor=1.0),
    "correction dimensions rounded": scaling("gpt_oss", truncate=True),
    "short factors for a long rope": scaling("phi3_longrope", original_max_position=128),
    "long factors for a short rope": scaling("phi3_longrope_short", original_max_position=64),
    "a rotation in layers that have none": everywhere_as_in("smollm3", 0, "rope"),
    "no rotation": attention("falcon_7b", rope=None),
    "one rotation for windowed and full layers": everywhere_as_in("gemma3", 1, "rope"),
    "no linear biases": attention("falcon_rw", alibi=None),
    "linear biases scaled": attention("mpt", alibi=AlibiSpec(scaled=True)),
    "linear biases not scaled": attention("falcon_rw", alibi=AlibiSpec(scaled=False)),
    "slopes of another largest bias": attention("mpt_6_heads", alibi=AlibiSpec(max_bias=16.0)),
    "slopes in order for three heads": Fault(
        "mpt_3_heads", patches={"attention.module.alibi_slopes": slopes_in_descending_order}
    ),
    # feed-forward
    "the exact GELU for its tanh form": ffn("gpt2", activation="gelu"),
    "the tanh form of GELU for the exact one": ffn("gpt_neox", activation="gelu_new"),
    "the tanh form for the sigmoid form of GELU": ffn("gpt2_quick_gelu", activation="gelu_new"),
    "SiLU for GELU": ffn("gemma3", activation="silu"),
    "gate and up swapped": Fault("llama2_mha", patches={"mlp.gate_with": gate_and_up_swapped}),
    "the experts' gate and up swapped": Fault("mixtral", patches={"moe.gate_with": gate_and_up_swapped}),
    "gate and up left in turns": parameters("gpt_oss", "ffn.gate_up.weight", halves_interleaved),
    "no clamp": ffn("gpt_oss", clamped=ClampedGlu(limit=7.0)),
    "the gate clamped below": Fault("gpt_oss", patches={"moe.gate_with": gate_clamped_below}),
    "nothing added to the clamped half": ffn("gpt_oss", clamped=ClampedGlu(limit=0.7, beta=0.0)),
    # routing
    "weights divided by their sum": routing("qwen3_moe_unnormalised", renormalise=True),
    "weights not divided by their sum": routing("mixtral", renormalise=False),
    "a softmax before the choice": routing("gpt_oss", score="softmax"),
    "a softmax after the choice": routing("qwen3_moe_unnormalised", score="topk_softmax"),
    "a softmax for sigmoids": routing("minimax_m2", score="softmax"),
    "no correction bias": routing("minimax_m2", correction_bias=False),
    "the correction bias in the weights": Fault("minimax_m2", patches={"moe.route": bias_in_the_weights}),
    "weights of other experts": Fault("mixtral", patches={"moe.route": weights_of_other_experts}),
    "one expert fewer": ffn("qwen3_moe", top_k=2),
}
