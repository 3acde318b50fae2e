"""All graphs of one engine as one object with one life: captured together, largest first, and freed together.

A graph is known by its key: (batch size, variant). The step to capture comes from the caller as a function of the key;
the set knows no model and no buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from ostinato.graphs.buckets import bucket_of
from ostinato.graphs.cuda_graph import CudaGraph
from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.graphs.host_graph import HostGraph
from ostinato.layers.errors import CaptureError

Variant = TypeVar("Variant", bound=Hashable)


class Graph(Protocol):
    """What a backend's graph can do."""

    def capture(self, step: Callable[[], None]) -> None:
        """Record one step."""

    def replay(self) -> None:
        """Run the recorded step."""

    def reset(self) -> None:
        """Free what it holds."""


class GraphSet(Generic[Variant]):
    """One graph per size and variant; ``close()`` frees all of them."""

    def __init__(self, sizes: Sequence[int], backend: str, device: torch.device) -> None:
        """``sizes`` ascending; ``backend`` is "cuda", "host" or "emulated"."""
        self.sizes = tuple(sizes)
        self.backend = backend
        self.captures = 0
        self.replays: dict[int, int] = dict.fromkeys(self.sizes, 0)
        self._device = device
        self._graphs: dict[tuple[int, Variant], Graph] = {}
        self._stream = torch.cuda.Stream(device) if backend == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if backend == "cuda" else None

    def capture_all(
        self,
        variants: Iterable[Variant],
        step_of: Callable[[int, Variant], Callable[[], None]],
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Warm up and capture ``step_of(size, variant)`` for every key, largest size first."""
        variants = tuple(variants)
        for size in reversed(self.sizes):
            for variant in variants:
                step = step_of(size, variant)
                self._warm_up(step)
                graph = self._new_graph()
                graph.capture(step)
                self._graphs[size, variant] = graph
                self.captures += 1
                progress(len(self._graphs))

    def replay(self, rows: int, variant: Variant) -> int:
        """Replay the graph that holds ``rows`` rows; returns its size."""
        size = bucket_of(rows, self.sizes)
        graph = self._graphs.get((size, variant))
        if graph is None:
            raise CaptureError(f"no graph for batch size {size}, {variant}: {len(self._graphs)} are captured")
        graph.replay()
        self.replays[size] += 1
        return size

    def close(self) -> None:
        """Free every graph and the pool. Replaying afterwards is a ``CaptureError``; closing twice is not."""
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()
        self._pool = self._stream = None

    def _warm_up(self, step: Callable[[], None]) -> None:
        """Two runs on the capture stream, so that nothing is initialised for the first time during the capture."""
        if self._stream is None:
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            step()
            step()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _new_graph(self) -> Graph:
        if self._stream is not None and self._pool is not None:
            return CudaGraph(self._stream, self._pool)
        return EmulatedGraph() if self.backend == "emulated" else HostGraph()
