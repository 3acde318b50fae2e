"""One tiny checkpoint as data: a class of transformers, its configuration, and how its reference must be run."""

from __future__ import annotations

from typing import Any, NamedTuple

WINDOW = 8
COMMON: dict[str, Any] = {
    "vocab_size": 112,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""What the llama-like families share; ``heads * head_dim`` differs from ``hidden_size`` unless a variant says so."""


class Variant(NamedTuple):
    """A model to build: ``config`` are the arguments of ``model_class.config_class``, as in config.json.

    ``attention`` is the implementation that is the reference: "eager" where transformers has no sdpa path for the model
    (MPT, Gemma 2, gpt-oss). Falcon with ALiBi needs "sdpa": its eager path adds the bias twice. ``embedding`` is the
    size of the token embeddings: a tied model with larger ones, or one that scales them itself, repeats its last token.
    """

    model_class: str
    config: dict[str, Any]
    attention: str = "sdpa"
    embedding: float = 0.3


def rope(theta: float, kind: str = "default", **settings: Any) -> dict[str, Any]:
    """``rope_parameters``, as transformers 5 writes them."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **settings}}


LLAMA3 = rope(5e5, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = rope(1e4, "yarn", factor=4.0, original_max_position_embeddings=64)
