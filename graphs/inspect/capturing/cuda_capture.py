"""Capturing a step into real CUDA graphs, one per batch size, largest first into one pool; then looking inside.

Bytes are differences of what the allocator and the driver report around the capture, never computed. Needs a GPU; the
parts that decide anything (``attribution``, ``captured``, ``kernel_times.match``) are tested without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ostinato.graphs.cuda_graph import collection_paused
from ostinato.graphs.inspect.capturing.attribution import NodeWatch, Owners, owners
from ostinato.graphs.inspect.capturing.bandwidth import Rates
from ostinato.graphs.inspect.capturing.capture import blaming, external_bytes, opaque_note, with_times
from ostinato.graphs.inspect.capturing.captured import CapturedGraph, KnownBuffers, Span
from ostinato.graphs.inspect.capturing.kernel_times import kernel_seconds
from ostinato.graphs.inspect.capturing.libcuda import Driver
from ostinato.graphs.inspect.capturing.ograph import Memory, Node, SizeGraph
from ostinato.graphs.inspect.capturing.op_record import DIRECT_LAUNCH, StepRun, record_step
from ostinato.graphs.inspect.capturing.op_times import EventClock, StateKeeper, median_seconds, op_seconds
from ostinato.graphs.inspect.target import Target, takes
from ostinato.layers.errors import CaptureError

_WARM_UPS = 3


def capture_sizes(target: Target, sizes: Sequence[int], rates: Rates) -> tuple[dict[int, SizeGraph], list[str]]:
    """The graphs by batch size, and what could not be found out."""
    place = _Place(Driver(), torch.cuda.Stream(), torch.cuda.graph_pool_handle())
    notes: list[str] = []
    graphs: dict[int, SizeGraph] = {}
    kept = []  # graphs and their results stay until the last one is captured, as in a server
    for size in sorted(sizes, reverse=True):
        with blaming(target, size):
            one = _Capture(target, size, place)
            kept.append(one)
            graphs[size] = one.described(rates, notes)
    return {size: graphs[size] for size in sorted(sizes)}, notes


class _Place:
    """What the captures of all sizes share."""

    def __init__(self, driver: Driver, stream: torch.cuda.Stream, pool: Any) -> None:
        self.driver, self.stream, self.pool = driver, stream, pool

    def pool_bytes(self) -> int:
        """What the allocator has reserved for the pool."""
        if takes(torch.cuda.memory_snapshot, "mempool_id"):
            segments = torch.cuda.memory_snapshot(mempool_id=self.pool)
        else:
            segments = [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) == tuple(self.pool)]
        return sum(segment["total_size"] for segment in segments)


class _Capture:
    """One captured batch size."""

    def __init__(self, target: Target, size: int, place: _Place) -> None:
        self._size, self._place = size, place
        self._inputs = target.inputs(size)
        self._function = target.function
        with torch.cuda.stream(place.stream):
            for _ in range(_WARM_UPS):
                self._function(*self._inputs)
        place.stream.synchronize()
        self.graph: Any = torch.cuda.CUDAGraph(keep_graph=True)
        self.watch = NodeWatch.of_capture(place.driver, place.stream.cuda_stream)
        before = place.pool_bytes()
        torch.cuda.reset_peak_memory_stats()
        live = torch.cuda.memory_allocated()
        self.run = self._record(target.name)
        self.peak = torch.cuda.max_memory_allocated() - live
        self.added = place.pool_bytes() - before
        self.state = StateKeeper(self.run.written)
        self.exec_bytes = self._instantiate()

    def _record(self, name: str) -> StepRun:
        place = self._place
        try:
            with (
                collection_paused(),
                torch.cuda.graph(self.graph, pool=place.pool, stream=place.stream, capture_error_mode="thread_local"),
            ):
                return record_step(self._function, self._inputs, self.watch)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise CaptureError(f"{name}: capture at batch size {self._size} was refused: {reason}") from error

    def _instantiate(self) -> int:
        """Bytes that the driver took for the executable graph and its first launch."""
        torch.cuda.synchronize()
        free, _ = torch.cuda.mem_get_info()
        self.graph.instantiate()
        self.graph.replay()
        torch.cuda.synchronize()
        return max(0, free - torch.cuda.mem_get_info()[0])

    def described(self, rates: Rates, notes: list[str]) -> SizeGraph:
        """As data; the graph is replayed for its times."""
        run = self.run
        inside = CapturedGraph.from_torch(self.graph, {n: Span(*s) for n, s in run.spans.items()}, self._place.driver)
        found = owners(inside.handles, run.created, self.watch.out_of_order)
        times = kernel_seconds(inside.nodes, self.graph.replay, self.state.restore)
        nodes = tuple(_finish(node, found.op_of[node.index], times[node.index], run) for node in inside.nodes)
        seconds = self._op_seconds(nodes, found, notes)
        ops = tuple(replace(op, nodes=r) for op, r in zip(run.ops, found.nodes_of, strict=True))
        notes += [*opaque_note(ops), *(f"batch size {self._size}: {note}" for note in (*inside.notes, *found.notes))]
        memory = Memory(
            self.added, max(0, self.peak - self.added), self.exec_bytes, external_bytes(run), run.memory.by_line()
        )
        return SizeGraph(
            self._size,
            "kernel",
            with_times(ops, seconds, rates),
            nodes,
            inside.edges,
            run.buffers,
            memory,
            self._seconds(self.graph.replay),
            self._seconds(lambda: self._function(*self._inputs)),
        )

    def _op_seconds(self, nodes: Sequence[Node], found: Owners, notes: list[str]) -> list[float | None]:
        """An op takes as long as its nodes; without times of nodes, what events around it say in an eager run."""
        if any(node.seconds is not None for node in nodes):
            totals: list[float | None] = [None] * len(self.run.ops)
            for node in nodes:
                if node.op is not None and node.seconds is not None:
                    totals[node.op] = (totals[node.op] or 0.0) + node.seconds
            return totals
        notes.append(f"batch size {self._size}: no times of kernels (no CUPTI, or branches); ops are timed eagerly")
        names = [op.op for op in self.run.ops if op.op != DIRECT_LAUNCH]
        with torch.cuda.stream(self._place.stream):
            eager = op_seconds(lambda: self._function(*self._inputs), names, self.state, EventClock())
        timed = iter(eager or ())
        return [None if op.op == DIRECT_LAUNCH else next(timed, None) for op in self.run.ops]

    def _seconds(self, step: Callable[[], object]) -> float:
        with torch.cuda.stream(self._place.stream):
            return median_seconds(step, self.state, EventClock())


def _finish(node: Node, op: int | None, seconds: float | None, run: StepRun) -> Node:
    """With its op and time, and with the names of the pool's buffers: their addresses mean something only by op."""
    if op is not None and run.op_spans[op]:
        known = KnownBuffers({name: Span(*span) for name, span in run.op_spans[op].items()})
        parameters = tuple(
            replace(p, buffer=known.at(int(p.value, 16))) if p.buffer is None and p.size == 8 else p
            for p in node.parameters
        )
        node = replace(node, parameters=parameters)
    return replace(node, op=op, seconds=seconds)
