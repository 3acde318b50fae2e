"""What a step calls that is no operation on tensors: print, logging, garbage collection, compilers, torch.cuda.

For the time of a dry run these are replaced, process-wide, by forms that note who called them; calls from torch's own
code and from other threads go through as they are. Where there is no GPU the common names of ``torch.cuda`` do nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ostinato.graphs.inspect.source import is_users
from ostinato.graphs.inspect.tracing.hazards import Hazard
from ostinato.graphs.inspect.tracing.trace import Recording


@contextlib.contextmanager
def watched(recording: Recording) -> Iterator[None]:
    """Note what this thread's user code calls within."""
    with contextlib.ExitStack() as stack:
        for owner, name, make in (*_WATCHED, *(_REAL_CUDA if recording.is_real else _CUDA)):
            if hasattr(owner, name):
                stack.enter_context(_replaced(owner, name, make(recording, getattr(owner, name))))
        _watch_triton(recording, stack)
        yield


@contextlib.contextmanager
def with_cuda_imagined(recording: Recording) -> Iterator[None]:
    """For code that is not the step: the names of ``torch.cuda`` where there is none. Nothing is being captured."""
    with contextlib.ExitStack() as stack:
        for owner, name, make in () if recording.is_real else _CUDA:
            if hasattr(owner, name) and name != "is_current_stream_capturing":
                stack.enter_context(_replaced(owner, name, make(recording, getattr(owner, name))))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = name in vars(owner)
    before = vars(owner)[name] if own else None
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


Make = Callable[[Recording, Any], Any]


def _noted(
    hazard: Hazard,
    op: str,
    instead: Callable[..., Any] | None = None,
    first: Callable[[Recording], None] = lambda _: None,
) -> Make:
    """A form that notes ``hazard`` when the user's code calls, then does it, or ``instead`` of it."""

    def make(recording: Recording, real: Any) -> Any:
        thread = threading.get_ident()

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or not _called_by_user():
                return real(*args, **kwargs)
            first(recording)
            recording.note(hazard, op)
            return (instead or real)(*args, **kwargs)

        return call

    return make


def _called_by_user() -> bool:
    """Whether the caller of our replacement is the user's code (two frames up, past a library's wrapper)."""
    frame = sys._getframe(2)
    return is_users(frame.f_code.co_filename)


def _print(recording: Recording, real: Any) -> Any:
    """Prints nothing: what is printed is made into text, so that a tensor among it is seen."""
    thread = threading.get_ident()
    hazard = Hazard(
        "python-side-effect", "warning", "print runs at capture and never at replay", "print after the replay"
    )

    def call(*values: Any, **options: Any) -> None:
        if threading.get_ident() != thread:
            real(*values, **options)
            return
        before = len(recording.trace.findings)
        for value in values:
            str(value)
        if len(recording.trace.findings) == before:
            recording.note(hazard, "print")

    return call


def _log(recording: Recording, real: Any) -> Any:
    """``Logger.handle`` of a record that is made: logs nothing."""
    thread = threading.get_ident()
    hazard = Hazard(
        "python-side-effect", "warning", "logging runs at capture and never at replay", "log after the replay"
    )

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        if threading.get_ident() != thread or not is_users(record.pathname):
            real(logger, record)
            return
        before = len(recording.trace.findings)
        record.getMessage()
        if len(recording.trace.findings) == before:
            recording.note(hazard, "logging")

    return handle


def _import_dynamo(recording: Recording) -> None:
    """What is compiled within the step runs as written, too."""
    if "torch._dynamo" not in sys.modules:
        importlib.import_module("torch._dynamo")
        recording.run_as_written()


_COMPILE = Hazard(
    "late-compile",
    "error",
    "torch.compile is called within the step: it compiles at the first call of each form, in a capture or a request",
    "compile once outside, and run every size before the capture",
)
_COLLECT = Hazard(
    "python-side-effect",
    "error",
    "gc.collect() within the step: freeing a graph or a module during a capture invalidates it (error 901)",
    "collect before the capture",
)
_WATCHED: tuple[tuple[Any, str, Make], ...] = (
    (builtins, "print", _print),
    (logging.Logger, "handle", _log),
    (gc, "collect", _noted(_COLLECT, "gc.collect", lambda *_: 0)),
    (torch, "compile", _noted(_COMPILE, "torch.compile", first=_import_dynamo)),
    (torch.jit, "script", _noted(_COMPILE, "torch.jit.script")),
    (torch.jit, "trace", _noted(_COMPILE, "torch.jit.trace")),
)


def _sync(name: str, says: str = "the host waits for the device") -> Hazard:
    return Hazard("device-sync", "error", f"{name}: {says}, which a capture refuses", "do it outside of the step")


class _Stream:
    """A stream where there is none: what is given to it runs at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = 0

    def wait_stream(self, *_: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, *_: Any) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> Any:
        """An event that has happened."""
        return event or _Event()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class _Event(_Stream):
    def record(self, *_: Any) -> None:
        """It has happened."""

    def wait(self, *_: Any) -> None:
        """On the device: no wait for the host."""

    def query(self) -> bool:
        """It has happened."""
        return True


def _with_sync(kind: type, *names: str) -> Make:
    """A stand-in class of which ``names`` make the host wait."""

    def make(recording: Recording, _: Any) -> Any:
        def method(name: str) -> Any:
            hazard = _sync(f"{kind.__name__.strip('_')}.{name}")

            def call(*_: Any) -> float:
                recording.note(hazard, f"torch.cuda.{kind.__name__.strip('_')}.{name}")
                return 0.0

            return call

        return type(kind.__name__.strip("_"), (kind,), {name: method(name) for name in names})

    return make


def _nothing(result: Any = None) -> Make:
    return lambda recording, real: lambda *args, **kwargs: result


def _generator(_: Recording, real: Any) -> Any:
    """``torch.Generator("cuda")`` on a CPU."""

    class Generator(real):  # type: ignore[misc]
        def __new__(cls, device: Any = None) -> Any:
            return real()

    return Generator


_CUDA: tuple[tuple[Any, str, Make], ...] = (
    (torch.cuda, "synchronize", _noted(_sync("torch.cuda.synchronize"), "torch.cuda.synchronize", lambda *_: None)),
    (torch.cuda, "empty_cache", _noted(_sync("torch.cuda.empty_cache", "frees memory"), "torch.cuda.empty_cache")),
    (torch.cuda, "Stream", _with_sync(_Stream, "synchronize")),
    (torch.cuda, "Event", _with_sync(_Event, "synchronize", "elapsed_time")),
    (
        torch.cuda,
        "current_stream",
        lambda recording, real: lambda *_: _with_sync(_Stream, "synchronize")(recording, None)(),
    ),
    (torch.cuda, "stream", _nothing(contextlib.nullcontext())),
    (torch.cuda, "current_device", _nothing(0)),
    (torch.cuda, "device", _nothing(contextlib.nullcontext())),
    (torch.cuda, "is_current_stream_capturing", _nothing(True)),
    (torch.cuda, "get_device_capability", _nothing((9, 0))),
    (torch, "Generator", _generator),
)
"""Names of torch.cuda that a step may call, where there is no device."""

_REAL_CUDA: tuple[tuple[Any, str, Make], ...] = (
    (torch.cuda, "synchronize", _noted(_sync("torch.cuda.synchronize"), "torch.cuda.synchronize")),
    (torch.cuda, "empty_cache", _noted(_sync("torch.cuda.empty_cache", "frees memory"), "torch.cuda.empty_cache")),
    (torch.cuda.Stream, "synchronize", _noted(_sync("Stream.synchronize"), "torch.cuda.Stream.synchronize")),
    (torch.cuda.Event, "synchronize", _noted(_sync("Event.synchronize"), "torch.cuda.Event.synchronize")),
    (torch.cuda.Event, "elapsed_time", _noted(_sync("Event.elapsed_time"), "torch.cuda.Event.elapsed_time")),
)
"""The same on a device: done, and noted."""


def _watch_triton(recording: Recording, stack: contextlib.ExitStack) -> None:
    """Kernels are not launched where no device is; an autotuner within the step is noted."""
    runtime = sys.modules.get("triton.runtime")
    if runtime is None:
        return
    tuned = Hazard(
        "late-compile",
        "warning",
        "an autotuned kernel measures its candidates at the first call of each key",
        "run every size before the capture",
    )

    def launch(recording: Recording, real: Any) -> Any:
        def run(kernel: Any, *args: Any, **options: Any) -> Any:
            recording.trace.opaque.add(f"triton kernel {getattr(kernel, '__name__', 'kernel')} (not launched)")

        return real if recording.is_real else run

    def tune(recording: Recording, real: Any) -> Any:
        def run(kernel: Any, *args: Any, **options: Any) -> Any:
            recording.note(tuned, getattr(kernel, "__name__", "triton.autotune"))
            return real(kernel, *args, **options)

        return run

    stack.enter_context(_replaced(runtime.JITFunction, "run", launch(recording, runtime.JITFunction.run)))
    stack.enter_context(_replaced(runtime.Autotuner, "run", tune(recording, runtime.Autotuner.run)))
