"""Architectures that no family here knows: what transformers' own code runs."""

from __future__ import annotations

from typing import Any

from tiny.variant import COMMON, WINDOW, Variant

_SHARED = {name: value for name, value in COMMON.items() if name not in ("head_dim", "rms_norm_eps")}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}


def _of(model_class: str, **changes: Any) -> Variant:
    return Variant(model_class, {**_SHARED, **changes})


FOREIGN: dict[str, Variant] = {
    "starcoder2": _of("Starcoder2ForCausalLM", norm_epsilon=1e-3, sliding_window=WINDOW),
    "stablelm": _of("StableLmForCausalLM", hidden_size=64, layer_norm_eps=1e-3, use_qkv_bias=True),
    "glm4": _of("Glm4ForCausalLM", head_dim=16, rms_norm_eps=1e-3, attention_bias=True),
    "cohere": _of("CohereForCausalLM", layer_norm_eps=1e-3, logit_scale=0.25, use_qk_norm=True),
    "olmoe": _of("OlmoeForCausalLM", rms_norm_eps=1e-3, **_EXPERTS),
    "opt": Variant(
        "OPTForCausalLM",
        {
            "vocab_size": 112,
            "hidden_size": 48,
            "word_embed_proj_dim": 32,
            "ffn_dim": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 1,
        },
    ),
    "olmo3": _of("Olmo3ForCausalLM", rms_norm_eps=1e-3, num_hidden_layers=4, sliding_window=WINDOW),
}
