"""Where a step's work goes: an ordered queue on a device, the memory it copies from, and the graphs it can hold.

``CudaStream`` is the real thing: the host goes on while the device works. ``HostStream`` is a CPU: work is done when it
was submitted, and the host's memory is the device's. Whoever submits work must leave what it reads alone until its
event says that it ran; that rule is the same for both, and a third one in the tests defers everything to check it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ostinato.graphs.cuda_graph import CudaGraph
from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.graphs.graph import Graph
from ostinato.graphs.host_graph import HostGraph


class Event(Protocol):
    """A point in a stream's order of work."""

    def wait(self) -> None:
        """Return when all work up to this point has run; raises what went wrong in it."""


class DeviceStream(Protocol):
    """Work in the order of its submission, on one device."""

    device: torch.device
    shares_memory: bool
    """Whether ``staging`` memory is the device's own: nothing needs to be copied to it."""
    warm_ups: int
    """Runs of a step on this stream before its capture, so that nothing is initialised for the first time in it."""

    def submit(self, work: Callable[[], None]) -> Event:
        """Queue what ``work`` launches. It may run at once or later: it reads nothing that changes meanwhile."""

    def staging(self, num_bytes: int) -> Tensor:
        """Zeroed host memory ``[num_bytes] uint8`` that the device copies from and to while the host goes on."""

    def new_graph(self) -> Graph:
        """An empty graph, to be captured and replayed within submitted work."""

    def graph_bytes(self) -> int:
        """Device memory that the captured graphs hold, in bytes, as far as it is known."""

    def synchronize(self) -> None:
        """Wait until everything submitted has run."""

    def close(self) -> None:
        """Let go of the graphs' memory; every graph has been reset."""


class HostStream:
    """A CPU: submitted work runs at once."""

    shares_memory = True
    warm_ups = 0

    def __init__(self, device: torch.device, *, emulate: bool) -> None:
        """``emulate``: graphs record their operations (``EmulatedGraph``), else they keep the step (``HostGraph``)."""
        self.device = device
        self._graph = EmulatedGraph if emulate else HostGraph

    def submit(self, work: Callable[[], None]) -> Event:
        """Do it."""
        work()
        return _RAN

    def staging(self, num_bytes: int) -> Tensor:
        """The device's memory itself."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device=self.device)

    def new_graph(self) -> Graph:
        """A graph of the kind asked for."""
        return self._graph()

    def graph_bytes(self) -> int:
        """Graphs on a CPU have no memory of their own that is counted."""
        return 0

    def synchronize(self) -> None:
        """Everything has run."""

    def close(self) -> None:
        """Nothing is held."""


class _Ran:
    def wait(self) -> None:
        """It ran when it was submitted."""


_RAN = _Ran()


class CudaStream:
    """A stream of its own on a GPU, and one memory pool for the graphs captured on it."""

    shares_memory = False
    warm_ups = 2

    def __init__(self, device: torch.device, *, emulate: bool) -> None:
        """``emulate``: graphs record operations, as on a CPU; nothing is captured."""
        self.device = device
        self._emulate = emulate
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def submit(self, work: Callable[[], None]) -> Event:
        """Launch it on the stream."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            work()
            return _CudaEvent(self._stream)

    def staging(self, num_bytes: int) -> Tensor:
        """Pinned memory: a copy from pageable memory would make the host wait."""
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)

    def new_graph(self) -> Graph:
        """A CUDA graph whose memory is the pool's."""
        return EmulatedGraph() if self._emulate else CudaGraph(self._stream, self._pool)

    def graph_bytes(self) -> int:
        """What the pool holds."""
        segments = torch.cuda.memory_snapshot(mempool_id=self._pool) if self._pool is not None else []
        return sum(int(segment["total_size"]) for segment in segments)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def close(self) -> None:
        """Drop the pool."""
        self._pool = None
        torch.cuda.empty_cache()


def stream_of(device: torch.device, *, emulate: bool) -> DeviceStream:
    """A stream on ``device``."""
    return CudaStream(device, emulate=emulate) if device.type == "cuda" else HostStream(device, emulate=emulate)


class _CudaEvent:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event()
        self._event.record(stream)

    def wait(self) -> None:
        """Block the host until the device got there."""
        self._event.synchronize()
