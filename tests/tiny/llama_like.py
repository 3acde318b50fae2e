"""Llama and Qwen3 in the forms that need no window."""

from __future__ import annotations

from typing import Any

from tiny.variant import COMMON, LLAMA3, YARN, Variant, rope


def _llama(**changes: Any) -> Variant:
    return Variant("LlamaForCausalLM", {**COMMON, **changes})


def _qwen3(**changes: Any) -> Variant:
    return Variant("Qwen3ForCausalLM", {**COMMON, **changes})


LLAMA_LIKE: dict[str, Variant] = {
    "qwen3": _qwen3(tie_word_embeddings=True, num_hidden_layers=3, **rope(1e6)),
    "qwen3_untied": _qwen3(vocab_size=128, **rope(1e6)),
    "qwen3_bias": _qwen3(attention_bias=True, **rope(1e4)),
    "qwen3_yarn": _qwen3(num_attention_heads=6, **YARN),
    "llama2_mha": _llama(hidden_size=64, num_key_value_heads=4, **rope(1e4)),
    "llama3_gqa": _llama(num_hidden_layers=3, **LLAMA3),
    "codellama": _llama(num_key_value_heads=4, **rope(1e6)),
    "llama_linear": _llama(**rope(1e4, "linear", factor=4.0)),
    "llama_yarn": _llama(**YARN),
    "llama_bias": _llama(attention_bias=True, mlp_bias=True, **rope(1e4)),
    "llama_tied": _llama(tie_word_embeddings=True, num_key_value_heads=1, **LLAMA3),
}
