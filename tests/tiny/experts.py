"""Families with routed experts: what decides the weights, which layers have experts, windows, sinks."""

from __future__ import annotations

from typing import Any

from tiny.variant import COMMON, WINDOW, Variant, rope

_ROUTED = {"num_local_experts": 6, "num_experts_per_tok": 2}


def _qwen3_moe(**changes: Any) -> Variant:
    config = {**COMMON, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, **rope(1e6)}
    return Variant("Qwen3MoeForCausalLM", {**config, **changes})


def _mixtral(**changes: Any) -> Variant:
    return Variant("MixtralForCausalLM", {**COMMON, **_ROUTED, "sliding_window": None, **rope(1e6), **changes})


def _minimax_m2(partial: float = 0.5, **changes: Any) -> Variant:
    config = {**COMMON, **_ROUTED, "intermediate_size": 24, **rope(5e6, partial_rotary_factor=partial)}
    return Variant("MiniMaxM2ForCausalLM", {**config, **changes})


def _gpt_oss(**changes: Any) -> Variant:
    yarn = rope(150000.0, "yarn", factor=8.0, original_max_position_embeddings=32, truncate=False)
    config = {
        **COMMON,
        **_ROUTED,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "sliding_window": WINDOW,
        "swiglu_limit": 0.7,
        **yarn,
    }
    return Variant("GptOssForCausalLM", {**config, **changes}, attention="eager")


EXPERTS: dict[str, Variant] = {
    "qwen3_moe": _qwen3_moe(norm_topk_prob=True),
    "qwen3_moe_unnormalised": _qwen3_moe(norm_topk_prob=False, tie_word_embeddings=True),
    "qwen3_moe_mixed": _qwen3_moe(
        norm_topk_prob=True,
        num_hidden_layers=4,
        mlp_only_layers=[1],
        decoder_sparse_step=2,
        use_sliding_window=True,
        sliding_window=WINDOW,
        attention_bias=True,
    ),
    "mixtral": _mixtral(),
    "mixtral_window": _mixtral(sliding_window=WINDOW),
    "minimax_m2": _minimax_m2(),
    "minimax_m2_full_rotary": _minimax_m2(1.0),
    "gpt_oss": _gpt_oss(),
}
