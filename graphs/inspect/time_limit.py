"""A limit on how long a target may run: a step that never ends is reported, not waited for.

A watching thread raises an exception in the thread that runs the step, which works off the main thread too. On the main
thread a signal follows, for a step that waits for a lock. A call into C that never returns cannot be interrupted.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Iterator

from ostinato.graphs.inspect.source import is_users
from ostinato.graphs.inspect.target import TargetTimeout

_POLL = 0.005
_PATIENCE = 2.0
"""Seconds to wait for a moment in which the user's own line runs: inside torch, it could leave a mode behind."""
_ARRIVES = 0.1
"""Seconds within which an exception has arrived, unless the target swallowed it."""
_AGAIN = 1.0
"""Seconds after which a target that swallowed the exception gets another one."""


@contextlib.contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise ``TargetTimeout`` naming ``what`` if the block runs longer than ``seconds``. May be nested."""
    up: type[BaseException] = type("_TimeIsUp", (BaseException,), {})  # of its own: an outer limit is another
    watch = _Watch(threading.get_ident(), seconds, up)
    message = f"{what} ran for more than {seconds:g} s"
    try:
        with _alarm_raises(up):
            watch.start()
            yield
    except up:
        watch.raised = False
        raise TargetTimeout(f"{message}, at {watch.place or 'an unknown line'}; does it end?") from None
    finally:
        watch.stop()


@contextlib.contextmanager
def _alarm_raises(up: type[BaseException]) -> Iterator[None]:
    """SIGALRM raises ``up`` in the main thread; where somebody else has a use for it, or on another thread, not."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGALRM) if main else None
    if not main or (before is not signal.SIG_DFL and not hasattr(before, "raises")):
        yield
        return

    def handler(*_: object) -> None:
        raise up

    vars(handler)["raises"] = up
    signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


class _Watch(threading.Thread):
    def __init__(self, watched: int, seconds: float, up: type[BaseException]) -> None:
        super().__init__(name="ostinato-time-limit", daemon=True)
        self.place: str | None = None
        self.raised = False
        self._watched, self._seconds, self._up = watched, seconds, up
        self._ended, self._raising = threading.Event(), threading.Lock()

    def run(self) -> None:
        """Raise in the watched thread when the time is up, and again while it goes on."""
        wait = self._seconds
        while not self._ended.wait(wait):
            self._wait_for_the_users_line()
            with self._raising:
                if not self._ended.is_set():
                    self.raised = True
                    _raise_in(self._watched, self._up)
                    self._wake(wait)
            wait = _AGAIN

    def _wake(self, waited: float) -> None:
        """At the second attempt: a lock that is waited for hears nothing but a signal, and the main thread only."""
        if waited == _AGAIN and getattr(signal.getsignal(signal.SIGALRM), "raises", None) is self._up:
            signal.pthread_kill(self._watched, signal.SIGALRM)

    def stop(self) -> None:
        """From here on nothing is raised; what was raised and has not arrived arrives here.

        Taking it back instead (an exception of None) leaves CPython 3.11's evaluation loop with a flag that never
        clears: under ``sys.settrace`` it does not go on.
        """
        self._ended.set()
        with self._raising, contextlib.suppress(self._up):
            deadline = time.monotonic() + _ARRIVES
            while self.raised and time.monotonic() < deadline:
                time.sleep(0)

    def _wait_for_the_users_line(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and not self._ended.is_set():
            frame = sys._current_frames().get(self._watched)
            if frame is not None and is_users(frame.f_code.co_filename):
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                return
            time.sleep(_POLL)


def _raise_in(thread: int, exception: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception))
