"""From a checkpoint's folder to transformers' class for it, and that class on ``meta``: no weights, no foreign code.

What transformers says while it does so (warnings, progress bars) is kept from the host's output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from ostinato.layers.errors import ModelLoadError
from ostinato.models.transformers_backend import experts, probe
from ostinato.models.transformers_backend.probe import Unfit

_CHANGING_ROPES = ("dynamic", "longrope")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' log at errors only and without progress bars; both put back."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """An error as part of one line."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]:.200}"


def read_hf_config(folder: Path, raw: Mapping[str, object], architecture: str) -> Any:
    """transformers' configuration of the folder; ``ModelLoadError`` where it has no code of its own for it."""
    for key in ("quantization_config", "compression_config"):
        if raw.get(key) is not None:
            raise ModelLoadError(f"config.json: {key}: expected none (quantised weights are not supported)")
    if (folder / "adapter_config.json").exists():
        raise ModelLoadError(f"{folder}: adapter_config.json: an adapter to another model, expected a whole one")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        if (kind := raw.get("model_type")) in known:
            raise ModelLoadError(f"config.json: transformers does not take it: {first_line(error)}") from error
        raise ModelLoadError(
            f"config.json: architectures: {architecture!r} is known neither here nor to transformers "
            f"{transformers.__version__} (model_type {kind!r}); code from a checkpoint is never run"
        ) from error
    config._attn_implementation = probe.NAME
    config._experts_implementation = experts.NAME
    return config


def check_config(config: Any, architecture: str) -> None:
    """``Unfit`` for what the configuration alone shows to be impossible."""
    if getattr(config, "is_encoder_decoder", False):
        raise Unfit("it is an encoder and a decoder")
    classes = AutoModelForCausalLM._model_mapping.get(type(config), ())
    classes = classes if isinstance(classes, tuple) else (classes,)
    names = [each.__name__ for each in classes]
    if architecture not in names:
        raise Unfit(f"transformers has no such language model of {config.model_type!r}, only {names or 'others'}")
    if config.get_text_config() is not config:
        raise Unfit("it takes more than text")
    if not getattr(config, "is_causal", True):
        raise Unfit("its attention is not causal")
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    stateful = sorted({kind for kind in kinds if "attention" not in kind or "linear" in kind})
    if stateful or any(getattr(each, "_is_stateful", False) for each in classes):
        which = f"layers of the kind {', '.join(stateful)} keep" if stateful else "it keeps"
        raise Unfit(f"{which} a recurrent state, which pages cannot hold")
    for kind in _rope_types(getattr(config, "rope_parameters", None)):
        if kind in _CHANGING_ROPES:
            raise Unfit(f"its rope ({kind!r}) changes with the longest text of a batch")


def _rope_types(parameters: Any) -> Iterator[object]:
    """The kinds of rotation: one, or one for each kind of layer."""
    if isinstance(parameters, Mapping):
        yield parameters.get("rope_type")
        for nested in parameters.values():
            yield from _rope_types(nested)


def on_meta(config: Any) -> Any:
    """The model without weights; ``Unfit`` where it does not take attention functions."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation=probe.NAME).eval()
    except Exception as error:
        if probe.NAME in str(error):
            raise Unfit("its code does not use transformers' attention interface") from error
        raise Unfit(f"transformers does not build it ({first_line(error)})") from error
