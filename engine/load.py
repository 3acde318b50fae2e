"""From a plan to a decoder with its weights, on the plan's device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch

from ostinato.graphs.ambient import neutral_state
from ostinato.models.decode_step import StepDecoder
from ostinato.models.registry import family_for
from ostinato.models.weights.load import load_weights
from ostinato.plan import Plan


def load_decoder(plan: Plan, raw: Mapping[str, object], progress: Callable[..., None]) -> StepDecoder:
    """The model that the checkpoint's ``raw`` config.json names, in ``plan.dtype``; ``ModelLoadError`` by tensor."""
    progress("loading weights")
    if plan.model_impl == "transformers":
        return _by_transformers(plan)
    family = family_for(raw)
    with neutral_state(plan.device.type), torch.device("meta"):
        decoder = family.build(plan.spec)

    def loaded(done: int, total: int) -> None:
        progress("loading weights", done / max(1, total))

    with neutral_state(plan.device.type):
        load_weights(decoder, family, plan.spec, plan.folder, plan.device, plan.dtype, loaded)
    model: StepDecoder = decoder.eval()
    return model


def _by_transformers(plan: Plan) -> StepDecoder:
    """transformers' own code; nobody who did not ask for it gets it unnoticed."""
    from ostinato.models.transformers_backend.load import load

    if plan.config.model_impl == "auto":
        text = f"no family here knows {plan.spec.architecture}: transformers' own code runs it, with our KV cache"
        warnings.warn(f"{text} (model_impl='transformers' silences this)", RuntimeWarning, stacklevel=4)  # of LLM(...)
    with neutral_state(plan.device.type):
        return load(plan.folder, plan.spec, plan.device, plan.dtype)
