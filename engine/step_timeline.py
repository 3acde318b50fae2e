"""Where the time of an engine's steps goes, recorded while an app wants it: ``with llm.record_timeline() as timeline``.

Per step: ``prepare`` (scheduling and packing), ``launch`` (handing it to the device), ``wait`` (for the device),
``sample`` (what the host does with the tokens), and ``gap``: how long the device had nothing to do before it, by the
device's own clock. On a CPU the host is the device, and the time of the step itself is its ``wait``.

A recorder stands between the runner and its stream, and around the core's advance; when it goes, nothing of it stays.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ostinato.graphs.graph import Graph
from ostinato.graphs.streams import DeviceStream, Event
from ostinato.layers.errors import ConfigError
from ostinato.step import Step
from ostinato.step_graphs import StepGraphs

if TYPE_CHECKING:
    from ostinato.core import EngineCore


@dataclass
class StepTimes:
    """One step; times in seconds, ``start`` since the recording began."""

    start: float
    """When it was handed to the device."""
    batch_size: int
    """Rows (of a decode step) or tokens (of a mixed one) that were computed, padding included."""
    rows: int
    """The same without padding."""
    kind: Literal["decode", "mixed"]
    prepare: float = 0.0
    launch: float = 0.0
    sample: float = 0.0
    wait: float = 0.0
    gap: float = 0.0
    """0 for the first step after the engine had nothing to do."""
    replay: float = 0.0
    """How long the device worked on it."""


class StepTimeline:
    """The steps of one engine that were launched and brought in between ``begin`` and ``end``."""

    def __init__(self, core: EngineCore) -> None:
        self.steps: list[StepTimes] = []
        self._core = core
        self._began = self._free_since = 0.0  # since when the host prepares
        self._handed_over: StepTimes | None = None  # what was launched last, until the host does something else
        self._waited: tuple[_Work, float] | None = None  # what was waited for last, and when that ended
        self._prior: Any = None  # the end of the last step on the device

    def begin(self) -> None:
        """Record from now on; ``ConfigError`` if another recorder does."""
        core = self._core
        core.check_alive()
        if core.timeline is not None:
            raise ConfigError("record_timeline: a timeline of this engine is being recorded already")
        self._began = time.perf_counter()
        core.timeline, core.runner.stream = self, _WatchedStream(core.runner.stream, self)

    def end(self) -> None:
        """Record no more; steps that are on their way are left out."""
        stream = self._core.runner.stream
        self._core.timeline = None
        if isinstance(stream, _WatchedStream):
            self._core.runner.stream = stream.inner

    def as_dict(self) -> dict[str, Any]:
        """Plain data of kind ``ostinato-timeline``."""
        from ostinato.graphs.inspect.environment import environment

        return {
            "schema": 1,
            "kind": "ostinato-timeline",
            "target": str(self._core.plan.config.model),
            "environment": environment(),
            "steps": [asdict(step) for step in self.steps],
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, for ``ostinato graph timeline``. ``OSError`` as ``open`` raises it."""
        Path(path).write_text(json.dumps(self.as_dict()), encoding="utf-8")

    def __str__(self) -> str:
        """Totals, medians and the largest gaps."""
        from ostinato.graphs.inspect.numbers.timeline import timeline_text

        return timeline_text(self.as_dict())

    # What the core and the stream tell.

    def record(self, advance: Callable[[], None]) -> None:
        """Run ``advance``, which launches steps and brings one in."""
        self._free_since = time.perf_counter()
        self._waited = self._handed_over = None
        try:
            advance()
        finally:
            if self._waited is not None:
                self._note(*self._waited)
            if not self._core.is_busy:
                self._prior = None

    def submit(self, stream: DeviceStream, work: Callable[[], None]) -> Event:
        """Hand ``work`` to ``stream``, watched, if it is a step's."""
        step = self._core.at_work
        if step is None:
            return stream.submit(work)
        begin = time.perf_counter()
        rows, size = step.num_tokens, _size(self._core.runner.graphs, step)
        times = StepTimes(begin - self._began, size, rows, "decode" if step.is_decode else "mixed")
        watched = _Work(times, stream.device)
        event = stream.submit(lambda: watched.run(work))
        end = time.perf_counter()
        on_host = watched.seconds if stream.shares_memory else 0.0
        times.prepare, times.launch, times.wait = begin - self._free_since, end - begin - on_host, on_host
        self._free_since, self._handed_over = end, times
        return _WatchedEvent(event, watched, self)

    def wait(self, event: Event, work: _Work) -> None:
        """Wait for ``event``, the end of ``work``."""
        begin = time.perf_counter()
        if self._handed_over is not None:  # what the host did since then was part of handing it over
            self._handed_over.launch += begin - self._free_since
            self._handed_over = None
        event.wait()
        end = time.perf_counter()
        work.times.wait += end - begin
        self._waited = work, end

    def _note(self, work: _Work, since: float) -> None:
        """A step was brought in, and its tokens were delivered."""
        work.times.sample = time.perf_counter() - since
        if self._prior is not None:
            work.times.gap = max(0.0, work.between(self._prior, work.start))
        self._prior, work.times.replay = work.end, work.seconds
        self.steps.append(work.times)


class _Work:
    """A step's work, and when it began and ended on the device."""

    def __init__(self, times: StepTimes, device: torch.device) -> None:
        self.times = times
        self._on_gpu = device.type == "cuda"
        self.start: Any = None
        self.end: Any = None

    def run(self, work: Callable[[], None]) -> None:
        """Do it, within submitted work."""
        self.start = self._mark()
        work()
        self.end = self._mark()

    @property
    def seconds(self) -> float:
        """How long it took; it has run."""
        return self.between(self.start, self.end)

    def between(self, first: Any, last: Any) -> float:
        """Seconds from mark to mark; both have been reached."""
        return float(first.elapsed_time(last)) / 1e3 if self._on_gpu else float(last - first)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()  # on the stream that the work was submitted to
        return event


class _WatchedEvent:
    def __init__(self, inner: Event, work: _Work, timeline: StepTimeline) -> None:
        self._inner, self._work, self._timeline = inner, work, timeline

    def wait(self) -> None:
        """Watched."""
        self._timeline.wait(self._inner, self._work)


class _WatchedStream:
    """The surface of a ``DeviceStream``: what is submitted goes through the timeline."""

    def __init__(self, inner: DeviceStream, timeline: StepTimeline) -> None:
        self.inner = inner
        self._timeline = timeline
        self.device, self.shares_memory, self.warm_ups = inner.device, inner.shares_memory, inner.warm_ups

    def submit(self, work: Callable[[], None]) -> Event:
        """Watched."""
        return self._timeline.submit(self.inner, work)

    def staging(self, num_bytes: int) -> Tensor:
        """The stream's own."""
        return self.inner.staging(num_bytes)

    def new_graph(self) -> Graph:
        """The stream's own."""
        return self.inner.new_graph()

    def follow(self) -> None:
        """As the stream does."""
        self.inner.follow()

    def bytes_in_use(self) -> int:
        """As the stream says."""
        return self.inner.bytes_in_use()

    def empty_cache(self) -> None:
        """The stream's own."""
        self.inner.empty_cache()

    def synchronize(self) -> None:
        """As the stream does."""
        self.inner.synchronize()

    def close(self) -> None:
        """The stream's own."""
        self.inner.close()


def _size(graphs: StepGraphs, step: Step) -> int:
    """Rows or tokens that are computed for a step."""
    rows = step.num_tokens
    if step.is_decode:
        size = graphs.decode.size_for(rows)
    else:
        sampled = 0 < len(step.sample_rows) <= graphs.prefill_rows
        size = graphs.prefill.size_for(max(2, rows)) if sampled else None
    return rows if size is None else size
