"""A graph on a GPU: CUDA graphs captured on the engine's stream into its memory pool, one per piece of the step.

A step without an ``eager_break`` is one piece. The capture is torch's own, driven here so that no garbage is collected
and no cache emptied for each of dozens of captures.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ostinato.graphs.graph import EagerCall, capturing
from ostinato.layers.errors import CaptureError


class CudaGraph:
    """One captured step. ``thread_local`` capture leaves the caller's other threads free to use CUDA.

    Captured kernels do not run while they are captured. What is captured runs on the stream that is current.
    """

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        """Pieces are captured from ``stream`` into ``pool``."""
        self._stream = stream
        self._pool = pool
        self._recording: Any = None
        self._pieces: list[Any] = []
        self._closed = False

    @property
    def breaks(self) -> tuple[str, ...]:
        """Names of the functions that split the step."""
        return tuple(piece.name for piece in self._pieces if isinstance(piece, EagerCall))

    def capture(self, step: Callable[[], object]) -> None:
        """Record ``step``; a failure leaves nothing behind and is raised."""
        if self._closed or self._pieces:
            raise CaptureError("capture into a graph that was captured before, or reset")
        self._stream.synchronize()
        try:
            with collection_paused(), capturing(self):
                self._begin()
                step()
                self._end()
        except BaseException:
            self._abandon()
            raise

    def call_eagerly(self, call: EagerCall) -> Any:
        """End the piece, run it so that ``call`` sees its results, call, and begin the next piece."""
        self._end()
        self._pieces[-1].replay()
        result = call.first()
        self._pieces.append(call)
        self._stream.synchronize()
        self._begin()
        return result

    def replay(self) -> None:
        """Launch the pieces on the current stream."""
        if not self._pieces:
            raise CaptureError("replay of a graph that was never captured, or was reset")
        for piece in self._pieces:
            piece.replay()

    def reset(self) -> None:
        """Free the graphs and their share of the pool."""
        for piece in self._pieces:
            if not isinstance(piece, EagerCall):
                piece.reset()
        self._pieces, self._closed = [], True

    def _begin(self) -> None:
        self._recording = torch.cuda.CUDAGraph()
        self._recording.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        piece, self._recording = self._recording, None
        piece.capture_end()
        self._pieces.append(piece)

    def _abandon(self) -> None:
        """After a failure: the stream must leave the capture, which is invalid and says so once more."""
        if self._recording is not None:
            try:
                self._recording.capture_end()
            except RuntimeError:
                self._leave_pool()
            with contextlib.suppress(RuntimeError):
                self._recording.reset()
            self._recording = None
        self.reset()

    def _leave_pool(self) -> None:
        """Of an invalidated capture torch raises before it lets go of the pool; then nothing else could record into it.

        Where it had let go already, the first call says so and nothing is done twice.
        """
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
            torch._C._cuda_releasePool(self._stream.device_index, self._pool)


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
