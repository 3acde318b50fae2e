"""A graph on a GPU: ``torch.cuda.CUDAGraph`` captured on the set's stream into the set's memory pool."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch


class CudaGraph:
    """One captured step. ``thread_local`` capture leaves the caller's other threads free to use CUDA."""

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        self._stream = stream
        self._pool = pool
        self._graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()

    def capture(self, step: Callable[[], None]) -> None:
        """Record ``step``; warmed up by the set on the same stream."""
        if self._graph is None:
            raise RuntimeError("capture into a graph that was reset")
        with (
            collection_paused(),
            torch.cuda.graph(self._graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            step()

    def replay(self) -> None:
        """Launch the recorded kernels on the current stream."""
        if self._graph is None:
            raise RuntimeError("replay of a graph that was reset")
        self._graph.replay()

    def reset(self) -> None:
        """Free the graph and its share of the pool."""
        if self._graph is not None:
            self._graph.reset()
            self._graph = None


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """No cyclic garbage collection within: freeing a graph or module during a capture invalidates it."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
