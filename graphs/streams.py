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

    def follow(self) -> None:
        """Let what is submitted from now on come after what the caller's own stream was given so far."""

    def bytes_in_use(self) -> int:
        """Device memory that is taken, whoever has it, in bytes; 0 where nobody counts."""

    def empty_cache(self) -> None:
        """Give memory that is kept but not used back to the device."""

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

    def follow(self) -> None:
        """It does already."""

    def bytes_in_use(self) -> int:
        """Nobody counts."""
        return 0

    def empty_cache(self) -> None:
        """Nothing is kept."""

    def synchronize(self) -> None:
        """Everything has run."""

    def close(self) -> None:
        """Nothing is held."""


class _Ran:
    def wait(self) -> None:
        """It ran when it was submitted."""


_RAN = _Ran()


_idle: dict[torch.device, list[torch.cuda.Stream]] = {}
"""Streams of closed engines, for new ones: cuBLAS keeps up to 32 MiB for every stream it has ever seen."""


class CudaStream:
    """A stream of its own on a GPU, and one memory pool for the graphs captured on it."""

    shares_memory = False
    warm_ups = 2

    def __init__(self, device: torch.device, *, emulate: bool) -> None:
        """``emulate``: graphs record operations, as on a CPU; nothing is captured."""
        self.device = device
        self._emulate = emulate
        idle = _idle.setdefault(device, [])
        self._stream: torch.cuda.Stream = idle.pop() if idle else torch.cuda.Stream(device)
        self._closed = False
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._keeper: Any = None

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
        if self._emulate:
            return EmulatedGraph()
        if self._keeper is None:
            self._keep_pool()
        return CudaGraph(self._stream, self._pool)

    def follow(self) -> None:
        """Wait, on the device, for the stream that is current."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def bytes_in_use(self) -> int:
        """The device's own figure: pools and what the driver keeps for executable graphs are in it."""
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def empty_cache(self) -> None:
        """Of all streams."""
        torch.cuda.empty_cache()

    def _keep_pool(self) -> None:
        """A graph of next to nothing. A pool ends with its last graph, which may be one that had no memory."""
        self._keeper = CudaGraph(self._stream, self._pool)
        self.submit(lambda: self._keeper.capture(lambda: torch.zeros(1, device=self.device)))

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def close(self) -> None:
        """Drop the pool, and leave the stream to the next engine. Again: no effect."""
        if self._keeper is not None:
            self._keeper.reset()
            self._keeper = None
        if not self._closed:
            self._closed = True
            _idle[self.device].append(self._stream)
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
