"""Falcon 7B, 40B, 180B, 2-11B and RW: one or many key heads, one norm or two, rotary positions or linear biases."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families.common import (
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    activation_name,
    dtype_name,
    even_share,
    max_positions,
    refuse_quantised,
)
from ostinato.models.families.family import Family
from ostinato.models.rope_json import rope_spec
from ostinato.models.spec import PRE_NORMS, AlibiSpec, AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec
from ostinato.models.weights.layouts import per_group_qkv
from ostinato.models.weights.rules import OneOf, Rule

_LAYER = "transformer.h.{layer}"
RULES = (
    Rule("transformer.word_embeddings", "embed"),
    Rule("transformer.ln_f", "norm"),
    Rule("lm_head", "lm_head"),
    OneOf(
        (
            (
                Rule(f"{_LAYER}.ln_attn", "layers.{layer}.pre_attn_norm"),
                Rule(f"{_LAYER}.ln_mlp", "layers.{layer}.pre_ffn_norm"),
            ),
            (
                Rule(f"{_LAYER}.input_layernorm", "layers.{layer}.pre_attn_norm"),
                Rule(f"{_LAYER}.post_attention_layernorm", "layers.{layer}.pre_ffn_norm"),
            ),
        )
    ),
    # One layout for all: groups of query heads with their key and value head; a single group, or one head in each.
    Rule(f"{_LAYER}.self_attention.query_key_value", "layers.{layer}.attention.qkv", order=per_group_qkv),
    Rule(f"{_LAYER}.self_attention.dense", "layers.{layer}.attention.o"),
    Rule(f"{_LAYER}.mlp.dense_h_to_4h", "layers.{layer}.ffn.up"),
    Rule(f"{_LAYER}.mlp.dense_4h_to_h", "layers.{layer}.ffn.down"),
)


def falcon_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Falcon ``config.json`` describes; files from before transformers had it use shorter names."""
    names = {
        "n_embed": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_head_kv": "num_kv_heads",
    }
    old = {new: values[key] for key, new in names.items() if values.get(key) is not None}
    config = ConfigJson({**old, **{key: value for key, value in values.items() if value is not None}})
    refuse_quantised(config)
    hidden_size = config.integer("hidden_size", 1, MAX_HIDDEN)
    attention = _attention(config, hidden_size)
    activation = activation_name(config, "activation", "gelu")
    width = config.integer("ffn_hidden_size", 1, MAX_WIDTH, 4 * hidden_size)
    ffn = FfnSpec(width, activation, config.flag("bias", False), gated=False)
    grouped = config.flag("new_decoder_architecture", False)
    parallel = grouped or config.flag("parallel_attn", True)
    two_norms = not parallel or (grouped and config.integer("num_ln_in_parallel_attn", 1, 2, 2) == 2)
    layer = LayerSpec(attention, ffn, PRE_NORMS if two_norms else frozenset({"pre_attn"}), parallel)
    return ModelSpec(
        architecture="FalconForCausalLM",
        vocab_size=config.integer("vocab_size", 1, MAX_VOCABULARY),
        hidden_size=hidden_size,
        layers=(layer,) * config.integer("num_hidden_layers", 1, MAX_LAYERS),
        norm=NormSpec(config.number("layer_norm_epsilon", 0, 1, 1e-5), "layer", bias=True),
        tie_word_embeddings=config.flag("tie_word_embeddings", True),
        max_position_embeddings=max_positions(config, attention.rope),
        dtype=dtype_name(config),
    )


def _attention(config: ConfigJson, hidden_size: int) -> AttentionSpec:
    heads = config.integer("num_attention_heads", 1, MAX_HEADS)
    head_dim = even_share(config, "num_attention_heads", heads, hidden_size)
    one_kv_head = config.flag("multi_query", True) and not config.flag("new_decoder_architecture", False)
    kv_heads = 1 if one_kv_head else config.integer("num_kv_heads", 1, MAX_HEADS, heads)
    if heads % kv_heads:
        raise config.refusal("num_kv_heads", f"a divisor of num_attention_heads = {heads}")
    alibi = config.flag("alibi", False)
    bias = config.flag("bias", False)
    return AttentionSpec(
        heads,
        kv_heads,
        head_dim,
        head_dim**-0.5,
        rope=None if alibi else rope_spec(config, head_dim),
        alibi=AlibiSpec(scaled=True) if alibi else None,
        qkv_bias=bias,
        o_bias=bias,
    )


FAMILY = Family(
    "falcon", ("FalconForCausalLM", "RWForCausalLM"), falcon_spec, RULES,
    about="RoPE or ALiBi; one key head, some or all; parallel or sequential blocks",
)  # fmt: skip
