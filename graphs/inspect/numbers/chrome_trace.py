"""A Chrome trace of ``torch.profiler`` as a timeline: replays of CUDA graphs, and what the host did between them.

A replay is a call of ``cudaGraphLaunch`` and all that the device did of it, joined by the correlation id. Between two
launches the host waits where it is in a call that synchronises. After its last wait, until the first copy to the
device, it deals with the tokens (``sample``); everything else is ``prepare``, and all of it where nothing is copied to
the device. Knows no torch; the batch size of a replay is not in a trace.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ostinato.layers.errors import ConfigError

_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_RUNTIME = ("cuda_runtime", "cuda_driver")
_LAUNCHES = ("cudaGraphLaunch", "cuGraphLaunch")
_EAGER_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")


@dataclass(frozen=True)
class _Span:
    """A part of the trace, in microseconds."""

    name: str
    start: float
    end: float
    args: Mapping[str, Any]

    @property
    def correlation(self) -> object:
        return self.args.get("correlation")


@dataclass(frozen=True)
class _Replay:
    launch: _Span
    start: float
    end: float
    kernels: int
    graph: object


def from_trace(data: Any, name: str) -> dict[str, Any]:
    """Data of kind ``ostinato-timeline``, with ``rows`` and ``batch_size`` None; ``ConfigError`` if nothing replays.

    Each step has further fields: ``replay``, seconds on the device; ``kernels``; ``graph``, its id; and ``other``,
    seconds of the gap before it in which the device ran something else.
    """
    events = _events(data, name)
    device = sorted((_span(event) for event in events if event.get("cat") in _DEVICE), key=lambda span: span.start)
    thread, calls, others = _busiest_thread(events)
    replays = _replays(calls, device)
    if not replays:
        eager = sum(event.get("name", "").startswith(_EAGER_LAUNCHES) for event in events)
        text = f"{name}: no replay of a CUDA graph in it: {len(device):,} device events, {eager:,} eager launches"
        raise ConfigError(f"{text}; were both CPU and CUDA activities recorded?")
    copied = {span.correlation for span in device if span.name.startswith("Memcpy HtoD")}
    steps = [_step(replay, replays[0]) for replay in replays]
    call_starts, device_starts = ([span.start for span in spans] for spans in (calls, device))
    for number in range(1, len(replays)):
        last, replay = replays[number - 1], replays[number]
        inside = _starting(calls, call_starts, last.launch.end, replay.launch.start)
        _between(steps[number - 1], steps[number], last, replay, inside, copied)
        others_work = _starting(device, device_starts, last.end, replay.start)
        steps[number]["other"] = _covered(others_work, last.end, replay.start) / 1e6
    _after_last(steps[-1], replays[-1], calls)
    return {
        "schema": 1,
        "kind": "ostinato-timeline",
        "target": name,
        "environment": _environment(data, thread),
        "steps": steps,
        "not_checked": [f"{others:,} replays launched by other threads"] if others else [],
    }


def _events(data: Any, name: str) -> list[Mapping[str, Any]]:
    events = data.get("traceEvents") if isinstance(data, dict) else data
    if not isinstance(events, list):
        raise ConfigError(f"{name}: no list traceEvents: neither a timeline nor a Chrome trace")
    complete: list[Mapping[str, Any]] = [
        event for event in events if isinstance(event, dict) and event.get("ph") == "X"
    ]
    for number, event in enumerate(complete):
        if not all(isinstance(event.get(field), int | float) for field in ("ts", "dur")):
            raise ConfigError(f"{name}: complete event {number} ({event.get('name')!r}) has no ts or dur in numbers")
    return complete


def _span(event: Mapping[str, Any]) -> _Span:
    start = float(event["ts"])
    return _Span(str(event.get("name", "")), start, start + float(event["dur"]), event.get("args") or {})


def _busiest_thread(events: Iterable[Mapping[str, Any]]) -> tuple[object, list[_Span], int]:
    """The thread that launches most graphs, its calls of CUDA by time, and how many launches are other threads'."""
    by_thread: dict[Any, list[_Span]] = defaultdict(list)
    for event in events:
        if event.get("cat") in _RUNTIME:
            by_thread[event.get("pid"), event.get("tid")].append(_span(event))
    launches = Counter(
        {thread: sum(call.name.startswith(_LAUNCHES) for call in calls) for thread, calls in by_thread.items()}
    )
    if not launches:
        return None, [], 0
    thread, count = launches.most_common(1)[0]
    return thread, sorted(by_thread[thread], key=lambda call: call.start), launches.total() - count


def _replays(calls: Sequence[_Span], device: Sequence[_Span]) -> list[_Replay]:
    """By launch. A launch without device events is left out: of a call that is traced twice only one has them."""
    work: dict[object, list[_Span]] = defaultdict(list)
    for span in device:
        work[span.correlation].append(span)
    found = []
    for call in calls:
        spans = work.get(call.correlation, []) if call.name.startswith(_LAUNCHES) else []
        if spans:
            graph = next((span.args["graph id"] for span in spans if "graph id" in span.args), None)
            found.append(_Replay(call, spans[0].start, max(span.end for span in spans), len(spans), graph))
    return found


def _step(replay: _Replay, first: _Replay) -> dict[str, Any]:
    return {
        "start": (replay.launch.start - first.launch.start) / 1e6,
        "batch_size": None,
        "rows": None,
        "kind": "decode",
        "prepare": 0.0,
        "launch": (replay.launch.end - replay.launch.start) / 1e6,
        "sample": 0.0,
        "wait": 0.0,
        "gap": 0.0,
        "replay": (replay.end - replay.start) / 1e6,
        "kernels": replay.kernels,
        "graph": replay.graph,
        "other": 0.0,
    }


def _between(
    before: dict[str, Any],
    step: dict[str, Any],
    last: _Replay,
    replay: _Replay,
    inside: Sequence[_Span],
    copied: set[object],
) -> None:
    """Give the host's time between two launches, with its calls ``inside``, to the steps.

    Waiting and tokens are the first one's, preparing is the other's.
    """
    begin, end = last.launch.end, replay.launch.start
    waits = [call for call in inside if _is_wait(call)]
    waited = _covered(waits, begin, end)
    free = max((call.end for call in waits), default=begin)
    copies = [call.start for call in inside if call.correlation in copied and call.start >= free]
    sampled = max(0.0, min(copies) - free) if copies and waits else 0.0
    before["wait"], before["sample"] = waited / 1e6, sampled / 1e6
    step["prepare"] = max(0.0, end - begin - waited - sampled) / 1e6
    step["gap"] = max(0.0, replay.start - last.end) / 1e6


def _after_last(step: dict[str, Any], replay: _Replay, calls: Sequence[_Span]) -> None:
    """The wait for the last replay, if the trace has it."""
    waits = (call for call in calls if call.start >= replay.launch.end and _is_wait(call))
    first = next(waits, None)
    step["wait"] = 0.0 if first is None else (first.end - first.start) / 1e6


def _is_wait(call: _Span) -> bool:
    """A call that returns when the device got somewhere; a plain ``cudaMemcpy`` is one too."""
    return "Synchronize" in call.name or call.name == "cudaMemcpy"


def _starting(spans: Sequence[_Span], starts: Sequence[float], begin: float, end: float) -> Sequence[_Span]:
    """Those that start in [begin, end); ``starts`` ascending."""
    return spans[bisect_left(starts, begin) : bisect_left(starts, end)]


def _covered(spans: Iterable[_Span], begin: float, end: float) -> float:
    """Microseconds of [begin, end) that ``spans``, by start, cover."""
    covered, reached = 0.0, begin
    for span in spans:
        start, stop = max(span.start, reached), min(span.end, end)
        if stop > start:
            covered, reached = covered + stop - start, stop
    return covered


def _environment(data: Any, thread: object) -> dict[str, Any]:
    """What the trace says about where it was made."""
    properties = data.get("deviceProperties") if isinstance(data, dict) else None
    first = properties[0] if isinstance(properties, list) and properties and isinstance(properties[0], dict) else {}
    return {"device": first.get("name"), "thread": str(thread)}
