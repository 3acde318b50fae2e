"""Dense families with rotary positions beside Llama and Qwen3: windows, fused tensors, post norms, softcaps, scales."""

from __future__ import annotations

from typing import Any

from tiny.variant import COMMON, WINDOW, YARN, Variant, rope

WITHOUT_HEAD_DIM = {key: value for key, value in COMMON.items() if key != "head_dim"} | {"hidden_size": 64}
"""For classes that know no ``head_dim``: hidden_size / heads = 16."""

_LAYER_WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "num_hidden_layers": 3}
_LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 2.0, 2.5], "long_factor": [1.0, 1.3, 2, 3, 4, 5, 6.5, 8.0]}


def _mistral(**changes: Any) -> Variant:
    return Variant("MistralForCausalLM", {**COMMON, "sliding_window": None, **changes})


def _qwen2(**changes: Any) -> Variant:
    return Variant("Qwen2ForCausalLM", {**WITHOUT_HEAD_DIM, **changes})


def _qwen3(**changes: Any) -> Variant:
    return Variant("Qwen3ForCausalLM", {**COMMON, **changes})


def _phi3(original: int = 256, **changes: Any) -> Variant:
    return Variant("Phi3ForCausalLM", {**WITHOUT_HEAD_DIM, "original_max_position_embeddings": original, **changes})


def _smollm3(**changes: Any) -> Variant:
    return Variant("SmolLM3ForCausalLM", {**WITHOUT_HEAD_DIM, "num_hidden_layers": 4, **rope(2e6), **changes})


def _olmo2(**changes: Any) -> Variant:
    return Variant("Olmo2ForCausalLM", {**WITHOUT_HEAD_DIM, **rope(5e5), **changes})


def _granite(**changes: Any) -> Variant:
    scales = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.1,
        "logits_scaling": 1.7,
    }
    return Variant("GraniteForCausalLM", {**WITHOUT_HEAD_DIM, **scales, **rope(1e4), **changes}, embedding=0.1)


def _gemma2(**changes: Any) -> Variant:
    config = {
        **COMMON,
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
        **rope(1e4),
    }
    return Variant("Gemma2ForCausalLM", {**config, **changes}, attention="eager", embedding=0.05)


def _gemma3(**changes: Any) -> Variant:
    config = {
        **COMMON,
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 24,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    }
    return Variant("Gemma3ForCausalLM", {**config, **changes}, attention="eager", embedding=0.05)


DENSE: dict[str, Variant] = {
    "mistral_window": _mistral(sliding_window=WINDOW, **rope(1e4)),
    "mistral_nemo": _mistral(num_attention_heads=2, num_key_value_heads=1, head_dim=32, **rope(1e6)),
    "qwen2": _qwen2(**rope(1e6)),
    "qwen2_tied": _qwen2(tie_word_embeddings=True, **rope(1e6)),
    "qwen2_windows": _qwen2(max_window_layers=1, **_LAYER_WINDOWS, **rope(1e6)),
    "qwen2_yarn": _qwen2(**YARN),
    "qwen3_windows": _qwen3(max_window_layers=2, **_LAYER_WINDOWS, **rope(1e6)),
    "qwen3_layer_types": _qwen3(
        layer_types=["full_attention", "sliding_attention", "full_attention"], **_LAYER_WINDOWS, **rope(1e6)
    ),
    "phi3": _phi3(num_key_value_heads=4, **rope(1e4)),
    "phi3_window": _phi3(sliding_window=WINDOW, **rope(1e4)),
    "phi3_partial": _phi3(**rope(1e4, partial_rotary_factor=0.75)),
    "phi3_longrope": _phi3(original=32, **rope(1e4, "longrope", **_LONG)),
    "phi3_longrope_short": _phi3(original=128, **rope(1e4, "longrope", **_LONG)),
    "smollm3": _smollm3(no_rope_layers=[1, 0, 1, 0]),
    "smollm3_interval": _smollm3(no_rope_layer_interval=3, tie_word_embeddings=True),
    "smollm3_windows": _smollm3(no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=WINDOW),
    "olmo2": _olmo2(),
    "olmo2_mha": _olmo2(num_key_value_heads=4),
    "gemma2": _gemma2(),
    "gemma2_uncapped": _gemma2(attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3": _gemma3(),
    "gemma3_bias": _gemma3(attention_bias=True, tie_word_embeddings=False),
    "granite": _granite(),
    "granite_bias": _granite(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
}
