"""Tiny random checkpoints saved by transformers: the reference every family is compared with.

``build("qwen3", folder)`` writes a checkpoint of some kilobytes and returns the transformers model that wrote it. Every
parameter is redrawn, because transformers' own start values (norm weights of one, biases of zero) hide mistakes; the
epsilon is 1e-3 for the same reason. ``heads * head_dim`` differs from ``hidden_size`` in most variants. No variant has
an end-of-sequence token unless the caller asks for one (``eos_token_id=2``). The variants are listed in ``tiny/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny.classic import CLASSIC
from tiny.dense import DENSE
from tiny.experts import EXPERTS
from tiny.foreign import FOREIGN
from tiny.llama_like import LLAMA_LIKE
from tiny.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from tiny.forms import Form

VARIANTS: dict[str, Variant] = LLAMA_LIKE
"""What every test of the engine runs on."""
ALL_VARIANTS: dict[str, Variant] = {**LLAMA_LIKE, **DENSE, **EXPERTS, **CLASSIC}
"""Every family and its odd forms."""


def build(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    form: Form = "safetensors",
    old_config: bool = False,
    hub_names: bool = False,
    fused_experts: bool = False,
    **overrides: Any,
) -> PreTrainedModel:
    """Write a checkpoint of one of ``ALL_VARIANTS`` or ``FOREIGN`` into ``folder``; return its transformers model.

    The model runs the attention that is the variant's reference. ``overrides`` are config.json fields.
    ``max_shard_size="40KB"`` gives several safetensors shards and an index; ``form`` "bin" and "bin_sharded" give
    files of ``torch.save`` instead; ``old_config`` a config.json in the words of transformers 4; ``hub_names`` the
    tensor names and the buffers of old files on the hub (GPT-2, GPT-NeoX, Falcon, Llama); ``fused_experts`` all experts
    in one tensor, as transformers 5 holds them in memory and saves them when asked to.
    """
    import transformers

    from tiny import forms

    variant = (ALL_VARIANTS | FOREIGN)[family]
    model_class = getattr(transformers, variant.model_class)
    model = _random_model(model_class, variant, overrides, seed, dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=not fused_experts)
    if hub_names or form != "safetensors":
        forms.rewrite_weights(folder, form, forms.hub_names if hub_names else forms.unchanged)
    if old_config:
        forms.rewrite_config(folder)
    return model


def _random_model(
    model_class: type[PreTrainedModel], variant: Variant, overrides: dict[str, Any], seed: int, dtype: str
) -> PreTrainedModel:
    import torch

    implementations = {"attn_implementation": variant.attention, "experts_implementation": "eager"}
    config = model_class.config_class(**{**variant.config, **overrides, **implementations})
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    redraw(model, seed, variant.embedding)
    return model.to(getattr(torch, dtype)).eval()


def redraw(model: PreTrainedModel, seed: int, embedding: float = 0.3) -> None:
    """Draw every parameter anew, and the buffers that routing adds to its scores.

    The scales keep greedy tokens from repeating: 40 of the llama-like variants have 19-35 different ones. A query/key
    norm around one makes attention uniform.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    drawn = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "correction_bias" in n)]
    with torch.no_grad():
        for name, tensor in drawn:
            noise = torch.randn(tensor.shape, generator=generator)
            kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
            tensor.copy_(embedding * noise if kind.endswith("Embedding") else _scaled(noise, name, kind))


def _scaled(noise: Tensor, name: str, kind: str) -> Tensor:
    """``noise`` for the parameter ``name`` of a ``kind`` of module, in a size that shows in the logits."""
    if noise.dim() > 1 and not name.endswith("_bias"):
        inputs = noise.shape[-2] if kind in ("Conv1D", "GptOssExperts") else noise.shape[-1]
        return noise * 2.0 * inputs**-0.5
    if "Norm" in kind and name.endswith("weight"):
        sharp = 1.5 if "q_norm" in name or "k_norm" in name else 1.0
        return sharp * (1.0 + 0.3 * noise) - float(kind.startswith("Gemma"))  # Gemma's weights lie around zero
    return noise * (1.0 if name.endswith("sinks") else 0.2)
