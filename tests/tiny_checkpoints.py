"""Tiny random checkpoints saved by transformers: the reference every family is compared with.

``build("qwen3", folder)`` writes a checkpoint of some kilobytes and returns the transformers model that wrote it. Every
parameter is redrawn, because transformers' own start values (norm weights of one, biases of zero) hide mistakes; the
epsilon is 1e-3 for the same reason. ``heads * head_dim`` differs from ``hidden_size`` in most variants. No variant has
an end-of-sequence token unless the caller asks for one (``eos_token_id=2``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMMON: dict[str, Any] = {
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
}


def _rope(theta: float, kind: str = "default", **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **scaling}}


_LLAMA3 = _rope(
    5e5, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
_YARN = _rope(1e4, "yarn", factor=4.0, original_max_position_embeddings=64)

# variant: (transformers' model class, what differs from _COMMON)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {"tie_word_embeddings": True, "num_hidden_layers": 3, **_rope(1e6)}),
    "qwen3_untied": ("Qwen3ForCausalLM", {"vocab_size": 128, **_rope(1e6)}),
    "qwen3_bias": ("Qwen3ForCausalLM", {"attention_bias": True, **_rope(1e4)}),
    "qwen3_yarn": ("Qwen3ForCausalLM", {"num_attention_heads": 6, **_YARN}),
    "llama2_mha": ("LlamaForCausalLM", {"hidden_size": 64, "num_key_value_heads": 4, **_rope(1e4)}),
    "llama3_gqa": ("LlamaForCausalLM", {"num_hidden_layers": 3, **_LLAMA3}),
    "codellama": ("LlamaForCausalLM", {"num_key_value_heads": 4, **_rope(1e6)}),
    "llama_linear": ("LlamaForCausalLM", _rope(1e4, "linear", factor=4.0)),
    "llama_yarn": ("LlamaForCausalLM", _YARN),
    "llama_bias": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, **_rope(1e4)}),
    "llama_tied": ("LlamaForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 1, **_LLAMA3}),
}


def build(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> PreTrainedModel:
    """Write a checkpoint of one of ``VARIANTS`` into ``folder``; return the transformers model (eval mode, sdpa).

    ``overrides`` are config.json fields. ``max_shard_size="40KB"`` gives several shards and an index.
    """
    import torch
    import transformers

    class_name, changes = VARIANTS[family]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**{**_COMMON, **changes, **overrides})
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = model_class(config)
    redraw(model, seed)
    model = model.to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def redraw(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter anew. With these scales 40 greedy tokens of any variant have 19-33 different ones.

    Larger embeddings make a tied model repeat its last token; a query/key norm around one makes attention uniform.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * (0.3 if "embed" in name else 2.0 * parameter.shape[1] ** -0.5))
            elif "norm" in name:
                parameter.copy_((1.5 if "q_norm" in name or "k_norm" in name else 1.0) * (1.0 + 0.3 * noise))
            else:
                parameter.copy_(0.2 * noise)
