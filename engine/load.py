"""From a plan to a decoder with its weights, on the plan's device."""

from __future__ import annotations

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
    family = family_for(raw)
    with neutral_state(plan.device.type), torch.device("meta"):
        decoder = family.build(plan.spec)

    def loaded(done: int, total: int) -> None:
        progress("loading weights", done / max(1, total))

    with neutral_state(plan.device.type):
        load_weights(decoder, family, plan.spec, plan.folder, plan.device, plan.dtype, loaded)
    model: StepDecoder = decoder.eval()
    return model
