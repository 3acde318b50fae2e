"""Gemma 2 and Gemma 3 (text): four norms a layer around zero-centred weights, alternating windows, soft caps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import (
    MAX_LAYERS,
    layer_kinds,
    llama_like,
    refuse_unless,
    window_size,
    windows_of_kinds,
    with_layers,
    with_ropes,
    with_windows,
)
from ostinato.models.families.family import Family
from ostinato.models.rope_json import rope_spec
from ostinato.models.spec import ModelSpec, NormSpec, RopeSpec
from ostinato.models.weights.rules import Rule

GEMMA2_RULES = (
    *llama.OUTER_RULES,
    Rule(f"{llama.LAYER}.input_layernorm", "layers.{layer}.pre_attn_norm"),
    Rule(f"{llama.LAYER}.post_attention_layernorm", "layers.{layer}.post_attn_norm"),
    Rule(f"{llama.LAYER}.pre_feedforward_layernorm", "layers.{layer}.pre_ffn_norm"),
    Rule(f"{llama.LAYER}.post_feedforward_layernorm", "layers.{layer}.post_ffn_norm"),
    *llama.ATTENTION_RULES,
    *llama.MLP_RULES,
)
_NORMS = frozenset({"pre_attn", "post_attn", "pre_ffn", "post_ffn"})


def gemma2_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Gemma 2 ``config.json`` describes."""
    config = ConfigJson(values)
    return _with_kinds(config, _gemma_spec(config, "Gemma2ForCausalLM", 50.0, 30.0), pattern=2)


def gemma3_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Gemma 3 text ``config.json`` describes: two kinds of rotary positions, normalised heads."""
    config = ConfigJson(values)
    head_dim = config.integer("head_dim", 2, 1024, 256)
    full, local = _ropes(config, head_dim)
    spec = _gemma_spec(config, "Gemma3ForCausalLM", None, None, rope=full, qk_norm="head")
    spec = _with_kinds(config, spec, pattern=config.integer("sliding_window_pattern", 1, MAX_LAYERS, 6))
    return with_ropes(spec, [local if layer.attention.window else full for layer in spec.layers])


def _gemma_spec(
    config: ConfigJson,
    architecture: str,
    attention_cap: float | None,
    logit_cap: float | None,
    rope: RopeSpec | None = None,
    **attention: Any,
) -> ModelSpec:
    """What both have in common; the caps are the defaults where config.json does not mention them."""
    refuse_unless(config, use_bidirectional_attention=False)
    bias = config.flag("attention_bias", False)
    spec = llama_like(
        config,
        architecture,
        default_head_dim=256,
        default_tied=True,
        activation_key="hidden_activation",
        default_activation="gelu_pytorch_tanh",
        rope=rope,
        scale=config.number("query_pre_attn_scalar", 1e-6, 1e6, 256) ** -0.5,
        softcap=_cap(config, "attn_logit_softcapping", attention_cap),
        qkv_bias=bias,
        o_bias=bias,
        **attention,
    )
    return replace(
        with_layers(spec, [replace(layer, norms=_NORMS) for layer in spec.layers]),
        norm=NormSpec(spec.norm.eps, "gemma"),
        embed_scale=spec.hidden_size**0.5,
        logit_softcap=_cap(config, "final_logit_softcapping", logit_cap),
    )


def _cap(config: ConfigJson, key: str, default: float | None) -> float | None:
    if key not in config.values:
        return default
    return config.number(key, 1e-6, 1e6) if config.has(key) else None


def _with_kinds(config: ConfigJson, spec: ModelSpec, pattern: int) -> ModelSpec:
    """Every ``pattern``-th layer sees everything, the others a window; or as ``layer_types`` says."""
    num_layers = len(spec.layers)
    default = ["full_attention" if (index + 1) % pattern == 0 else "sliding_attention" for index in range(num_layers)]
    kinds = layer_kinds(config, num_layers, default)
    return with_windows(spec, windows_of_kinds(config, kinds, window_size(config, 4096)))


def _ropes(config: ConfigJson, head_dim: int) -> tuple[RopeSpec, RopeSpec]:
    """Positions of full and of sliding layers; older files call the latter's theta ``rope_local_base_freq``."""
    given = config.section("rope_parameters")
    if given is not None and (given.has("full_attention") or given.has("sliding_attention")):
        outer = {key: value for key, value in config.values.items() if key not in ("rope_parameters", "rope_scaling")}
        full, local = (
            rope_spec(ConfigJson({**outer, "rope_parameters": given.values.get(kind)}), head_dim, theta)
            for kind, theta in (("full_attention", 1e6), ("sliding_attention", 1e4))
        )
        return full, local
    if given is not None:
        raise config.refusal("rope_parameters", "full_attention and sliding_attention, with positions of their own")
    local_theta = config.number("rope_local_base_freq", 1.0001, 1e12, 1e4)
    return rope_spec(config, head_dim, 1e6), RopeSpec(local_theta, head_dim)


GEMMA2 = Family(
    "gemma2", ("Gemma2ForCausalLM",), gemma2_spec, GEMMA2_RULES, llama.IGNORED,
    about="alternating windows, soft caps on scores and logits, scaled embeddings",
)  # fmt: skip
GEMMA3 = Family(
    "gemma3", ("Gemma3ForCausalLM",), gemma3_spec, (*GEMMA2_RULES, *llama.QK_NORM_RULES), llama.IGNORED,
    about="windows in most layers, with a RoPE of their own; scaled embeddings",
)  # fmt: skip
