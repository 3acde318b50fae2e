"""Families with layer norms and plain feed-forwards: learned positions, ALiBi, parallel blocks, fused projections."""

from __future__ import annotations

from typing import Any

from tiny.variant import Variant, rope

_TOKENS = {"bos_token_id": None, "eos_token_id": None}


def _gpt2(**changes: Any) -> Variant:
    config = {
        "vocab_size": 112,
        "n_positions": 128,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 3,
        "layer_norm_epsilon": 1e-3,
        **_TOKENS,
    }
    return Variant("GPT2LMHeadModel", {**config, **changes})


def _gpt_neox(partial: float = 0.25, **changes: Any) -> Variant:
    config = {
        "vocab_size": 112,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "layer_norm_eps": 1e-3,
        **rope(1e4, partial_rotary_factor=partial),
        **_TOKENS,
    }
    return Variant("GPTNeoXForCausalLM", {**config, **changes})


def _mpt(heads: int, **attention: Any) -> Variant:
    config = {
        "vocab_size": 112,
        "d_model": 16 * heads,
        "n_heads": heads,
        "n_layers": 2,
        "max_seq_len": 256,
        "layer_norm_epsilon": 1e-3,
        "attn_config": attention,
        **_TOKENS,
    }
    return Variant("MptForCausalLM", config, attention="eager", embedding=0.1)


def _falcon(**changes: Any) -> Variant:
    """ALiBi wants a number of heads that is a power of two here: transformers rounds other slopes to bfloat16."""
    config = {
        "vocab_size": 112,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "layer_norm_epsilon": 1e-3,
        **_TOKENS,
    }
    positions = {} if changes.get("alibi") else rope(1e4)
    return Variant("FalconForCausalLM", {**config, **positions, **changes}, embedding=0.2)


_NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}

CLASSIC: dict[str, Variant] = {
    "gpt2": _gpt2(),
    "gpt2_inverse_layer": _gpt2(scale_attn_by_inverse_layer_idx=True, n_inner=80),
    "gpt2_unscaled": _gpt2(scale_attn_weights=False),
    "gpt2_relu": _gpt2(activation_function="relu"),
    "gpt2_quick_gelu": _gpt2(activation_function="quick_gelu"),
    "gpt2_gelu": _gpt2(activation_function="gelu"),
    "gpt2_untied": _gpt2(tie_word_embeddings=False),
    "gpt_neox": _gpt_neox(),
    "gpt_neox_sequential": _gpt_neox(use_parallel_residual=False),
    "gpt_neox_unbiased": _gpt_neox(attention_bias=False),
    "gpt_neox_full_rotary": _gpt_neox(1.0),
    "mpt": _mpt(4),
    "mpt_3_heads": _mpt(3),
    "mpt_6_heads": _mpt(6),
    "mpt_clipped": _mpt(4, clip_qkv=0.8),
    "mpt_scaled": _mpt(6, softmax_scale=0.4),
    "falcon_7b": _falcon(),
    "falcon_7b_untied": _falcon(tie_word_embeddings=False, ffn_hidden_size=80),
    "falcon_40b": _falcon(**_NEW),
    "falcon_11b": _falcon(**_NEW, num_ln_in_parallel_attn=1),
    "falcon_40b_alibi": _falcon(**_NEW, alibi=True),
    "falcon_rw": _falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "falcon_rw_rotary": _falcon(multi_query=False, parallel_attn=False, bias=True),
    "falcon_mqa_sequential": _falcon(parallel_attn=False, bias=True),
    "falcon_parallel_alibi": _falcon(alibi=True, multi_query=False),
    "falcon_parallel_mha": _falcon(multi_query=False),
    "falcon_mqa_alibi": _falcon(alibi=True),
}
