"""A device that lags behind: submitted work is queued, and runs when somebody waits for it, or at random before.

Has memory of its own, as a GPU has: what is not copied is not seen, and a copy reads memory of the host when it runs,
not when it was asked for. Whoever writes to memory that a queued copy still has to read gets wrong values, here and
there.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.graphs.graph import Graph
from ostinato.graphs.host_graph import HostGraph


class DeferredStream:
    """The surface of ``graphs.streams.DeviceStream``. ``eagerness``: the chance that a piece of work runs unasked.

    ``emulate``: graphs record operations; else they call the step again, which is faster and freezes nothing.
    """

    shares_memory = False
    warm_ups = 2

    def __init__(self, seed: int = 0, eagerness: float = 0.3, *, emulate: bool = True) -> None:
        self.device = torch.device("cpu")
        self.lag = 0  # most pieces of work that were ever behind
        self._rng = random.Random(seed)
        self._eagerness = eagerness
        self._graph = EmulatedGraph if emulate else HostGraph
        self._queue: deque[Callable[[], None]] = deque()
        self._submitted = self._done = 0

    def submit(self, work: Callable[[], None]) -> DeferredEvent:
        self._queue.append(work)
        self._submitted += 1
        event = DeferredEvent(self, self._submitted)
        while self._queue and self._rng.random() < self._eagerness:
            self._run_one()
        self.lag = max(self.lag, len(self._queue))
        return event

    def staging(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def new_graph(self) -> Graph:
        return self._graph()

    def follow(self) -> None:
        pass

    def bytes_in_use(self) -> int:
        return 0

    def empty_cache(self) -> None:
        pass

    def synchronize(self) -> None:
        self.run_until(self._submitted)

    def close(self) -> None:
        self.synchronize()

    def run_until(self, number: int) -> None:
        while self._done < number:
            self._run_one()

    def _run_one(self) -> None:
        work = self._queue.popleft()
        self._done += 1
        with torch.no_grad():
            work()


class DeferredEvent:
    def __init__(self, stream: DeferredStream, number: int) -> None:
        self._stream, self._number = stream, number

    def wait(self) -> None:
        self._stream.run_until(self._number)
