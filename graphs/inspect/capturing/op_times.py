"""How long a step and each of its ops take: medians over a few runs, from the same state each.

A step may advance a position or fill a cache: what it writes is put back before each run, up to 64 MiB a tensor; what
is larger (a KV cache) stays as the last run left it. On a CPU an op's time is that of its ATen call; on a GPU it is
the time between two events around it, which holds the launch too: times per kernel come from ``kernel_times``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from ostinato.graphs.inspect.tracing.listening_mode import ListeningMode

RUNS = 5
ENOUGH_SECONDS = 3.0
"""No further run after that long."""
_LARGEST_RESTORED = 64 << 20


class Clock(Protocol):
    """Marks in time, and the seconds between two of them."""

    def mark(self) -> Any:
        """Now."""

    def seconds(self, before: Any, after: Any) -> float:
        """Between two marks."""


class HostClock:
    """For work that is done when the call returns."""

    def mark(self) -> float:
        """Now, in seconds."""
        return time.perf_counter()

    def seconds(self, before: float, after: float) -> float:
        """Between two marks."""
        return after - before


class EventClock:
    """For work on the current CUDA stream."""

    def mark(self) -> torch.cuda.Event:
        """An event recorded now."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, before: torch.cuda.Event, after: torch.cuda.Event) -> float:
        """Between two events; waits for the second."""
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3


class StateKeeper:
    """Puts back what a step has written, as it was when this was made."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.kept = [(t, t.detach().clone()) for t in tensors if t.nbytes <= _LARGEST_RESTORED]

    def restore(self) -> None:
        """Copy the values back."""
        with torch.no_grad():
            for tensor, value in self.kept:
                tensor.copy_(value)


def median_seconds(step: Callable[[], object], state: StateKeeper, clock: Clock, runs: int = RUNS) -> float:
    """Of the whole step, nothing watching; at least one run, then as many as fit into ``ENOUGH_SECONDS``."""
    marks: list[tuple[Any, Any]] = []
    begin = time.monotonic()
    while not marks or (len(marks) < runs and time.monotonic() - begin < ENOUGH_SECONDS):
        state.restore()
        before = clock.mark()
        step()
        marks.append((before, clock.mark()))
    return median(clock.seconds(*each) for each in marks)


def op_seconds(step: Callable[[], object], ops: Sequence[str], state: StateKeeper, clock: Clock) -> list[float] | None:
    """Of each op, in order; None if a run did not call ``ops``: then nothing can be said of any."""
    runs: list[list[float]] = []
    begin = time.monotonic()
    while not runs or (len(runs) < RUNS and time.monotonic() - begin < ENOUGH_SECONDS):
        state.restore()
        with _Marks(clock) as marks:
            step()
        if [name for name, _, _ in marks.calls] != list(ops):
            return None
        runs.append([clock.seconds(before, after) for _, before, after in marks.calls])
    return [median(times) for times in zip(*runs, strict=True)]


class _Marks(ListeningMode):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.calls: list[tuple[str, Any, Any]] = []

    def called(self, op: Any, args: Any, kwargs: Any) -> Any:
        before = self._clock.mark()
        result = op(*args, **kwargs)
        self.calls.append((str(op), before, self._clock.mark()))
        return result
