"""The trace of transformers' own model of a checkpoint, through hooks on modules whose names are known.

Imports transformers, so it is imported when a trace is asked for.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.layers.errors import ModelLoadError
from ostinato.models.doctor.trace import Recorder, Trace
from ostinato.models.spec import ModelSpec

_LAYER = re.compile(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)")
_ATTENTION = ("self_attn", "attention", "attn", "self_attention")
_FEED_FORWARD = ("mlp", "ffn", "block_sparse_moe")


def load_theirs(folder: Path, spec: ModelSpec) -> nn.Module:
    """The model in fp32 on the CPU. ``ModelLoadError`` for whatever transformers says to it."""
    import transformers

    from ostinato.models.transformers_backend.build import quiet

    try:
        with quiet():
            model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=torch.float32,
                attn_implementation=_attention_of(spec),
                experts_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:  # it may be any
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(f"{folder}: transformers cannot load it: {type(error).__name__}: {reason}") from error
    return model.eval()


def trace_theirs(model: Any, token_ids: Sequence[int]) -> Trace:
    """As many points of one forward pass over ``token_ids`` as there are known names for."""
    recorder = Recorder()
    for index, layer in sorted(_layers(model).items()):
        if index == 0:
            recorder.before(layer, (None, "embedding"))
        if (attention := _child(layer, _ATTENTION)) is not None:
            recorder.before(attention, (index, "attention input"))
            recorder.after(attention, (index, "attention"))
        if (ffn := _child(layer, _FEED_FORWARD)) is not None:
            recorder.before(ffn, (index, "feed-forward input"))
            recorder.after(ffn, (index, "feed-forward"), _without_residual)
        recorder.after(layer, (index, "layer"))
    if isinstance(head := model.get_output_embeddings(), nn.Module):
        recorder.before(head, (None, "final norm"))
    with contextlib.closing(recorder), torch.no_grad():
        logits = model(torch.tensor([list(token_ids)]), use_cache=False).logits
    recorder.note((None, "logits"), logits)
    return recorder.trace


def _attention_of(spec: ModelSpec) -> str | None:
    """Its own choice: sdpa, where there is one. That leaves sinks and caps out; its eager Falcon adds ALiBi twice."""
    layers = [layer.attention for layer in spec.layers]
    return "eager" if any(each.sinks or each.softcap for each in layers) else None


def _layers(model: nn.Module) -> dict[int, nn.Module]:
    return {int(name[1]): module for path, module in model.named_modules() if (name := _LAYER.fullmatch(path))}


def _child(layer: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((module for name in names if isinstance(module := getattr(layer, name, None), nn.Module)), None)


def _without_residual(out: Tensor, *given: Any) -> Tensor:
    """MPT's feed-forward is given the residual too, and adds it."""
    return out - given[1] if len(given) > 1 and isinstance(given[1], Tensor) else out
