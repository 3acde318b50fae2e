"""GPT-NeoX and Pythia: parallel blocks with two layer norms, partly rotated heads, fused projections per head."""

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
from ostinato.models.spec import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec
from ostinato.models.weights.layouts import per_group_qkv
from ostinato.models.weights.rules import Rule

_LAYER = "gpt_neox.layers.{layer}"
RULES = (
    Rule("gpt_neox.embed_in", "embed"),
    Rule("gpt_neox.final_layer_norm", "norm"),
    Rule("embed_out", "lm_head"),
    Rule(f"{_LAYER}.input_layernorm", "layers.{layer}.pre_attn_norm"),
    Rule(f"{_LAYER}.post_attention_layernorm", "layers.{layer}.pre_ffn_norm"),
    Rule(f"{_LAYER}.attention.query_key_value", "layers.{layer}.attention.qkv", order=per_group_qkv),
    Rule(f"{_LAYER}.attention.dense", "layers.{layer}.attention.o"),
    Rule(f"{_LAYER}.mlp.dense_h_to_4h", "layers.{layer}.ffn.up"),
    Rule(f"{_LAYER}.mlp.dense_4h_to_h", "layers.{layer}.ffn.down"),
)
IGNORED = ("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq")


def gpt_neox_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a GPT-NeoX ``config.json`` describes."""
    config = _with_common_names(ConfigJson(values))
    refuse_quantised(config)
    hidden_size = config.integer("hidden_size", 1, MAX_HIDDEN)
    heads = config.integer("num_attention_heads", 1, MAX_HEADS)
    head_dim = even_share(config, "num_attention_heads", heads, hidden_size)
    rope = rope_spec(config, head_dim)
    bias = config.flag("attention_bias", True)
    attention = AttentionSpec(heads, heads, head_dim, head_dim**-0.5, rope, qkv_bias=bias, o_bias=bias)
    width = config.integer("intermediate_size", 1, MAX_WIDTH)
    ffn = FfnSpec(width, activation_name(config, default="gelu"), bias=True, gated=False)
    layer = LayerSpec(attention, ffn, parallel=config.flag("use_parallel_residual", True))
    return ModelSpec(
        architecture="GPTNeoXForCausalLM",
        vocab_size=config.integer("vocab_size", 1, MAX_VOCABULARY),
        hidden_size=hidden_size,
        layers=(layer,) * config.integer("num_hidden_layers", 1, MAX_LAYERS),
        norm=NormSpec(config.number("layer_norm_eps", 0, 1, 1e-5), "layer", bias=True),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        max_position_embeddings=max_positions(config, rope),
        dtype=dtype_name(config),
    )


def _with_common_names(config: ConfigJson) -> ConfigJson:
    """``rotary_emb_base`` and ``rotary_pct`` (0.25) by the names that other files use for them."""
    values = dict(config.values)
    for old, new, default in (
        ("rotary_emb_base", "rope_theta", 10_000.0), ("rotary_pct", "partial_rotary_factor", 0.25),
    ):  # fmt: skip
        if not config.has(new):
            values[new] = config.number(old, 0, 1e12, default)
    return ConfigJson(values)


FAMILY = Family(
    "gpt_neox", ("GPTNeoXForCausalLM",), gpt_neox_spec, RULES, IGNORED,
    about="parallel or sequential blocks, layer norms with biases, partly rotated heads",
)  # fmt: skip
