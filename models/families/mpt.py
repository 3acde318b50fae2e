"""MPT: linear biases in place of positions, layer norms without biases, one clamped projection."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families.common import (
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_LAYERS,
    MAX_VOCABULARY,
    dtype_name,
    even_share,
    refuse_quantised,
    refuse_unless,
)
from ostinato.models.families.family import Family
from ostinato.models.rope_json import MAX_POSITIONS
from ostinato.models.spec import AlibiSpec, AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec
from ostinato.models.weights.rules import Rule

_LAYER = "transformer.blocks.{layer}"
RULES = (
    Rule("transformer.wte", "embed"),
    Rule("transformer.norm_f", "norm"),
    Rule("lm_head", "lm_head"),
    Rule(f"{_LAYER}.norm_1", "layers.{layer}.pre_attn_norm"),
    Rule(f"{_LAYER}.norm_2", "layers.{layer}.pre_ffn_norm"),
    Rule(f"{_LAYER}.attn.Wqkv", "layers.{layer}.attention.qkv"),
    Rule(f"{_LAYER}.attn.out_proj", "layers.{layer}.attention.o"),
    Rule(f"{_LAYER}.ffn.up_proj", "layers.{layer}.ffn.up"),
    Rule(f"{_LAYER}.ffn.down_proj", "layers.{layer}.ffn.down"),
)


def mpt_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that an MPT ``config.json`` describes."""
    config = ConfigJson(values)
    refuse_quantised(config)
    refuse_unless(config, no_bias=True, logit_scale=None, expansion_ratio=4)
    hidden_size = config.integer("d_model", 1, MAX_HIDDEN)
    layer = LayerSpec(_attention(config, hidden_size), FfnSpec(4 * hidden_size, "gelu", gated=False))
    return ModelSpec(
        architecture="MptForCausalLM",
        vocab_size=config.integer("vocab_size", 1, MAX_VOCABULARY),
        hidden_size=hidden_size,
        layers=(layer,) * config.integer("n_layers", 1, MAX_LAYERS),
        norm=NormSpec(config.number("layer_norm_epsilon", 0, 1, 1e-5), "layer"),
        tie_word_embeddings=config.flag("tie_word_embeddings", True),
        max_position_embeddings=config.integer("max_seq_len", 1, MAX_POSITIONS, 2048),
        dtype=dtype_name(config),
    )


def _attention(config: ConfigJson, hidden_size: int) -> AttentionSpec:
    heads = config.integer("n_heads", 1, MAX_HEADS)
    head_dim = even_share(config, "n_heads", heads, hidden_size)
    attention = config.section("attn_config") or ConfigJson({}, config.place)
    refuse_unless(attention, alibi=True, prefix_lm=False, qk_ln=False, attn_type="multihead_attention")
    return AttentionSpec(
        heads,
        heads,
        head_dim,
        attention.number("softmax_scale", 1e-6, 1e6, head_dim**-0.5),
        rope=None,
        alibi=AlibiSpec(attention.number("alibi_bias_max", 1e-3, 1e3, 8)),
        clip_qkv=attention.number("clip_qkv", 1e-6, 1e6) if attention.values.get("clip_qkv") else None,
    )


FAMILY = Family(
    "mpt", ("MptForCausalLM", "MPTForCausalLM"), mpt_spec, RULES,
    about="ALiBi, layer norms without biases, one projection that may be clamped",
)  # fmt: skip
