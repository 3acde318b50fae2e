"""A checkpoint's weights, read by transformers: nothing missing, nothing left over, and a trial before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ostinato.layers.errors import ModelLoadError
from ostinato.models.config_json import read_json_object
from ostinato.models.spec import ModelSpec
from ostinato.models.transformers_backend import attention, trial
from ostinato.models.transformers_backend.build import first_line, quiet, read_hf_config
from ostinato.models.transformers_backend.decoder import TransformersDecoder
from ostinato.models.weights.load import raise_problems
from ostinato.models.weights.source import open_source


def load(folder: Path, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> TransformersDecoder:
    """The model that ``spec`` describes; ``ModelLoadError`` names tensors that do not fit."""
    raise_problems(folder, open_source(folder).problems)
    with quiet():
        model = _read(folder, spec, dtype).to(device).eval().requires_grad_(False)
        want = trial.reference_logits(model)
        model.config._attn_implementation = attention.NAME
        decoder = TransformersDecoder(model, spec).eval()
        _check(decoder, want, device, dtype)
    return decoder


def _read(folder: Path, spec: ModelSpec, dtype: torch.dtype) -> Any:
    config = read_hf_config(folder, read_json_object(folder / "config.json"), spec.architecture)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention.NAME,
            trust_remote_code=False,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelLoadError(f"{folder}: transformers cannot load the weights: {error}") from error
    lines = [
        *(f"{name}: expected by the model, no such tensor" for name in sorted(report["missing_keys"])),
        *(f"{name}: not a tensor of the model" for name in sorted(report["unexpected_keys"])),
        *(f"{name}: has another shape" for name in sorted(map(str, report.get("mismatched_keys", ())))),
        *map(str, report.get("error_msgs", ())),
    ]
    raise_problems(folder, lines)
    return model


def _check(decoder: TransformersDecoder, want: torch.Tensor, device: torch.device, dtype: torch.dtype) -> None:
    """``ModelLoadError`` unless pages give what transformers' own attention gives."""
    name = decoder.spec.architecture
    try:
        apart = trial.difference(trial.paged_logits(decoder, dtype, device), want)
    except Exception as error:
        raise ModelLoadError(f"{name}: transformers' code fails over a paged cache: {first_line(error)}") from error
    if apart > trial.LARGEST_DIFFERENCE.get(dtype, 0.2):
        raise ModelLoadError(
            f"{name}: over a paged cache transformers' code gives other logits than by itself (root mean square "
            f"{apart:.2g} of theirs apart): it keeps a state besides keys and values, or positions of its own"
        )
