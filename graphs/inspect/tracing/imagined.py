"""Making a step's inputs, and importing its module, as if there were the device that it is meant for."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

from ostinato.graphs.inspect.target import Target
from ostinato.graphs.inspect.time_limit import time_limit
from ostinato.graphs.inspect.tracing.residency import Residency, Where
from ostinato.graphs.inspect.tracing.trace import Recording, listening


@contextlib.contextmanager
def as_if_on_device(residency: Residency, device_type: str = "cuda") -> Iterator[None]:
    """Within, tensors may be asked for on the device. If none is, all that are made count as lying there."""
    recording = Recording(residency, device_type, {}, torch.cuda.is_available())
    with torch.no_grad(), listening(recording):
        yield
    if not recording.explicit:
        for storage in recording.trace.storages:
            residency.forget(storage.key, Where.HOST)


def make_inputs(
    target: Target, residency: Residency, device_type: str, batch_size: int, variant: int, seconds: float
) -> tuple[Any, ...]:
    """Fresh arguments of ``target``; ``TargetError`` if that fails or takes longer than ``seconds``."""
    what = f"{target.name}: make_inputs({batch_size}, variant={variant})"
    with time_limit(seconds, what), as_if_on_device(residency, device_type), seeded(1000 * variant + batch_size):
        return target.inputs(batch_size, variant)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers within are those of ``seed``, afterwards those of before: equal variants have equal values."""
    python, arrays = random.getstate(), sys.modules.get("numpy.random")
    numpy_state = arrays.get_state() if arrays is not None else None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        random.seed(seed)
        if arrays is not None:
            arrays.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            if arrays is not None:
                arrays.set_state(numpy_state)
