"""A stand-in for the parts of ``torch.cuda`` that streams and graphs use, over CPU tensors.

Capture does as CUDA does: what is captured is recorded and not computed (its outputs hold a sentinel until the first
replay), pieces are replayed in the order of their capture, and two captures at a time, or a synchronisation within one,
are errors. It does not defer anything: ``deferred_stream`` does.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ostinato.graphs import streams
from ostinato.graphs.emulated_graph import RecordedCall, _Recorder

POOL = (0, 7)
SENTINEL = -99
FREE = 1 << 30


class State:
    """What the device is doing."""

    log: list[str]
    capturing = False
    current: Stream | None = None
    in_pool = 0  # graphs that hold the pool
    pool_ended = False  # its last graph was reset: nothing can be captured into it any more
    recording = False  # allocations go to the pool; torch forgets to end that when a capture was invalidated
    invalidated = False


class Stream:
    device_index = 0

    def __init__(self, device: object = None) -> None:
        self.device = device

    def synchronize(self) -> None:
        if State.capturing:
            State.invalidated = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing (900)")

    def wait_stream(self, other: object) -> None:
        State.log.append("wait_stream")


class Event:
    def __init__(self) -> None:
        self._stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        assert stream is State.current
        self._stream = stream

    def synchronize(self) -> None:
        assert self._stream is not None, "an event that was never recorded"
        self._stream.synchronize()


class CUDAGraph:
    """The surface of ``torch.cuda.CUDAGraph`` that captures need."""

    def __init__(self) -> None:
        self._recorder: Any = None
        self._calls: list[RecordedCall] = []

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert (pool, capture_error_mode) == (POOL, "thread_local")
        assert not gc.isenabled(), "the garbage collector may run during a capture"
        assert not State.capturing
        if State.pool_ended:
            raise RuntimeError("INTERNAL ASSERT FAILED: it->second->use_count > 0")
        if State.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        State.log.append("begin")
        State.capturing = State.recording = True
        State.in_pool += 1
        self._recorder = _Recorder()
        self._recorder.__enter__()

    def capture_end(self) -> None:
        if self._recorder is None:
            raise RuntimeError("capture_end without capture_begin")
        State.log.append("end")
        State.capturing = False
        self._recorder.__exit__(None, None, None)
        if State.invalidated:
            State.invalidated = False
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture (901)")
        State.recording = False
        self._calls = self._recorder.calls
        for call in self._calls:
            for out in call.outputs:
                if not any(out is arg for arg in call.args):
                    out.fill_(SENTINEL)

    def replay(self) -> None:
        assert not State.capturing
        State.log.append("replay")
        for call in self._calls:
            call.replay()

    def reset(self) -> None:
        State.log.append("reset")
        State.in_pool -= 1
        State.pool_ended = State.in_pool == 0
        self._calls = []


@contextlib.contextmanager
def stream(on: Stream) -> Iterator[None]:
    before, State.current = State.current, on
    try:
        yield
    finally:
        State.current = before


def _end_allocate(device: int, pool: object) -> None:
    if not State.recording:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
    State.recording = False


def install(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put the stand-ins into ``torch.cuda``; returns what graphs and streams are asked to do from now on."""
    State.log, State.capturing, State.current, State.in_pool, State.pool_ended = [], False, None, 0, False
    State.recording = State.invalidated = False
    replaced = {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "stream": stream,
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": lambda device=None: Stream(),
        "graph_pool_handle": lambda: POOL,
        "mem_get_info": lambda device: (FREE - 1024 * State.in_pool, 2 * FREE),
        "empty_cache": lambda: State.log.append("empty_cache"),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(streams, "_idle", {})
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", _end_allocate)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: None)
    return State.log
