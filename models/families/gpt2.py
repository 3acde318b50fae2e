"""GPT-2: learned positions, layer norms with biases, plain feed-forward, weights stored transposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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
    refuse_quantised,
    refuse_unless,
)
from ostinato.models.families.family import Family
from ostinato.models.rope_json import MAX_POSITIONS
from ostinato.models.spec import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec
from ostinato.models.weights.rules import Rule

_LAYER = "transformer.h.{layer}"
RULES = (
    Rule("transformer.wte", "embed"),
    Rule("transformer.wpe", "embed_positions"),
    Rule("transformer.ln_f", "norm"),
    Rule("lm_head", "lm_head"),
    Rule(f"{_LAYER}.ln_1", "layers.{layer}.pre_attn_norm"),
    Rule(f"{_LAYER}.ln_2", "layers.{layer}.pre_ffn_norm"),
    Rule(f"{_LAYER}.attn.c_attn", "layers.{layer}.attention.qkv", transposed=True),
    Rule(f"{_LAYER}.attn.c_proj", "layers.{layer}.attention.o", transposed=True),
    Rule(f"{_LAYER}.mlp.c_fc", "layers.{layer}.ffn.up", transposed=True),
    Rule(f"{_LAYER}.mlp.c_proj", "layers.{layer}.ffn.down", transposed=True),
)
RENAMES = ((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),)  # the hub's files have no prefix
IGNORED = ("*.attn.bias", "*.attn.masked_bias")  # causal masks, not biases


def gpt2_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a GPT-2 ``config.json`` describes."""
    config = ConfigJson(values)
    refuse_quantised(config)
    refuse_unless(config, add_cross_attention=False)
    hidden_size = config.integer("n_embd", 1, MAX_HIDDEN)
    heads = config.integer("n_head", 1, MAX_HEADS)
    head_dim = even_share(config, "n_head", heads, hidden_size)
    scale = head_dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    attention = AttentionSpec(heads, heads, head_dim, scale, None, qkv_bias=True, o_bias=True)
    activation = activation_name(config, "activation_function", "gelu_new")
    ffn = FfnSpec(config.integer("n_inner", 1, MAX_WIDTH, 4 * hidden_size), activation, bias=True, gated=False)
    positions = config.integer("n_positions", 1, MAX_POSITIONS, 1024)
    by_depth = config.flag("scale_attn_by_inverse_layer_idx", False)
    return ModelSpec(
        architecture="GPT2LMHeadModel",
        vocab_size=config.integer("vocab_size", 1, MAX_VOCABULARY),
        hidden_size=hidden_size,
        layers=tuple(
            LayerSpec(replace(attention, scale=scale / (index + 1) if by_depth else scale), ffn)
            for index in range(config.integer("n_layer", 1, MAX_LAYERS))
        ),
        norm=NormSpec(config.number("layer_norm_epsilon", 0, 1, 1e-5), "layer", bias=True),
        tie_word_embeddings=config.flag("tie_word_embeddings", True),
        max_position_embeddings=positions,
        dtype=dtype_name(config),
        num_learned_positions=positions,
    )


FAMILY = Family(
    "gpt2", ("GPT2LMHeadModel",), gpt2_spec, RULES, IGNORED, RENAMES,
    about="multi-head attention, layer norms with biases, weights stored transposed",
)  # fmt: skip
