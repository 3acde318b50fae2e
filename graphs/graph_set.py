"""All graphs of one kind of step as one object with one life: captured together, largest first, and freed together.

A graph is known by its key: (size, variant). The step to capture comes from the caller as a function of the key; the
set knows no model and no buffers. Sizes for which the device has no memory are left out and named in ``dropped``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import torch

from ostinato.graphs.buckets import bucket_of
from ostinato.graphs.graph import Graph
from ostinato.graphs.streams import DeviceStream
from ostinato.layers.errors import CaptureError

Variant = TypeVar("Variant", bound=Hashable)


class GraphSet(Generic[Variant]):
    """One graph per size and variant on ``stream``; ``close()`` frees all of them."""

    def __init__(self, sizes: Sequence[int], stream: DeviceStream, sizes_are: str = "batch sizes") -> None:
        """``sizes`` ascending; ``sizes_are`` says in messages what they are."""
        self.sizes = tuple(sizes)
        self.sizes_are = sizes_are
        self.captures = 0
        self.replays: dict[int, int] = dict.fromkeys(self.sizes, 0)
        self.dropped: dict[int, str] = {}
        self._stream = stream
        self._graphs: dict[tuple[int, Variant], Graph] = {}

    def capture_all(
        self,
        variants: Iterable[Variant],
        step_of: Callable[[int, Variant], Callable[[], None]],
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Warm up and capture ``step_of(size, variant)`` for every key, largest size first.

        A size that runs out of memory is dropped with all its variants, and the smaller ones go on: they need less.
        Any other failure is a ``CaptureError`` that names the key, and leaves no graph.
        """
        variants = tuple(variants)
        if self.sizes:
            self._stream.empty_cache()  # what lies cached is not given to a capture
        for size in reversed(self.sizes):
            for variant in variants:
                reason = self._try_capture(size, variant, step_of(size, variant))
                if reason is not None:
                    self._drop(size, reason)
                    break
                progress(len(self._graphs))
        self.sizes = tuple(size for size in self.sizes if size not in self.dropped)

    def size_for(self, rows: int) -> int | None:
        """The smallest captured size that holds ``rows``; None if all are smaller."""
        return bucket_of(rows, self.sizes) if self.sizes and rows <= self.sizes[-1] else None

    def replay(self, size: int, variant: Variant) -> None:
        """Replay the graph of that key, within submitted work."""
        graph = self._graphs.get((size, variant))
        if graph is None:
            raise CaptureError(f"{self.sizes_are}: no graph for {size}, {variant}; {len(self._graphs)} are captured")
        graph.replay()
        self.replays[size] += 1

    @property
    def breaks(self) -> tuple[str, ...]:
        """Names of the functions around which graphs are split."""
        return tuple(dict.fromkeys(name for graph in self._graphs.values() for name in graph.breaks))

    def close(self) -> None:
        """Free every graph. Replaying afterwards is a ``CaptureError``; closing twice is not."""
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()

    def _try_capture(self, size: int, variant: Variant, step: Callable[[], None]) -> str | None:
        """Capture; the reason if there is no memory for it. When it returns, nothing of a failed step is alive."""
        try:
            self._capture(size, variant, step)
        except Exception as error:
            if (reason := out_of_memory(error)) is not None:
                return reason
            self.close()
            raise CaptureError(f"{self.sizes_are}: {size}, {variant}: {_first_line(error)}") from error
        return None

    def _capture(self, size: int, variant: Variant, step: Callable[[], None]) -> None:
        """Run the step a few times as it is, on the same stream, then record it."""
        for _ in range(self._stream.warm_ups):
            self._stream.submit(step)
        self._stream.synchronize()
        graph = self._stream.new_graph()
        self._stream.submit(lambda: graph.capture(step)).wait()
        self._graphs[size, variant] = graph
        self.captures += 1

    def _drop(self, size: int, reason: str) -> None:
        self.dropped[size] = reason
        for key in [key for key in self._graphs if key[0] == size]:
            self._graphs.pop(key).reset()
        self._stream.empty_cache()


def out_of_memory(error: BaseException | None) -> str | None:
    """The device's own words if ``error``, or what caused it, says that its memory was not enough; else None.

    A capture that runs out of memory may end in "operation failed due to a previous error during capture" only
    (pytorch#187795): the cause is in the chain. The driver, which makes the executable graph, has an error of its own.
    """
    while error is not None:
        of_driver = isinstance(error, RuntimeError) and "CUDA error: out of memory" in str(error)
        if isinstance(error, torch.OutOfMemoryError) or of_driver:
            return _first_line(error)
        error = error.__cause__ or error.__context__
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
