"""Time on the GPU: events around calls, and around every replay of a CUDA graph, whoever replays it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

WARM_UP = 3


def event_seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """GPU time of each of ``repeats`` runs, after a few that do not count."""
    for _ in range(WARM_UP):
        run()
    pairs = [_timed(run) for _ in range(repeats)]
    torch.cuda.synchronize()
    return [1e-3 * began.elapsed_time(ended) for began, ended in pairs]


def captured(run: Callable[[], Any], count: int = 1) -> torch.cuda.CUDAGraph:
    """A graph of ``count`` runs one after another, warmed up on the stream that captures it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            run()
    return graph


class ReplayClock:
    """The events of the replays seen while it ran."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Any, Any]] = []

    def add(self, replay: Callable[[], None]) -> None:
        """Run ``replay`` between two events."""
        self._pairs.append(_timed(replay))

    def seconds(self) -> list[float]:
        """GPU time of each replay, in their order; waits for the last."""
        torch.cuda.synchronize()
        return [1e-3 * began.elapsed_time(ended) for began, ended in self._pairs]


@contextlib.contextmanager
def replay_clock() -> Iterator[ReplayClock]:
    """Time every ``torch.cuda.CUDAGraph.replay`` within, on the stream it is launched on."""
    clock, original = ReplayClock(), torch.cuda.CUDAGraph.replay

    def replay(graph: torch.cuda.CUDAGraph) -> None:
        clock.add(lambda: original(graph))

    graphs: Any = torch.cuda.CUDAGraph
    graphs.replay = replay
    try:
        yield clock
    finally:
        graphs.replay = original


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` % of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _timed(run: Callable[[], Any]) -> tuple[Any, Any]:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    return began, ended
