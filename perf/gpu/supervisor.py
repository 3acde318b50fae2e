"""Runs parts in worker processes: each within its time, each whatever became of the one before.

Knows no torch and no CUDA. A worker that raised, died or overran is replaced before the next part.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, cast

from ostinato.perf.gpu.budget import Budget
from ostinato.perf.gpu.finding import outcome
from ostinato.perf.gpu.parts import Part

WORKER = (sys.executable, "-m", "ostinato.perf.gpu.worker")


class Worker:
    """One process; ``ask`` it a part at a time, then ``stop`` it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [*WORKER, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that what a part started ends with it
        )
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._requests = cast(IO[str], self._process.stdin)
        self._output = cast(IO[str], self._process.stdout)
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, part: Part, seconds: float) -> dict[str, Any] | None:
        """The part's outcome; None if the process died. ``TimeoutError`` after ``seconds``."""
        with contextlib.suppress(BrokenPipeError):  # it is dead: there is no reply either
            request = {"part": part.name, "module": part.module_name, "seconds": seconds}
            print(json.dumps(request), file=self._requests, flush=True)
        try:
            reply = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        return None if reply is None else dict(json.loads(reply))

    def stop(self) -> int:
        """End the process and everything that it started; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        for pipe in (self._requests, self._output):
            with contextlib.suppress(OSError):  # what was not yet written has nobody to read it
                pipe.close()
        return code

    def exit_code(self) -> int:
        """Of a process that has ended, or is about to."""
        return self._process.wait()

    def _read(self) -> None:
        for line in self._output:
            self._replies.put(line)
        self._replies.put(None)


def run_parts(
    parts: Sequence[Part],
    settings: Mapping[str, Any],
    budget: Budget,
    done: Callable[[Part, dict[str, Any]], None],
    begun: Callable[[Part], None] = lambda _: None,
) -> None:
    """Run ``parts`` in order; ``done`` is told each one's outcome as soon as it is known."""
    worker: Worker | None = None
    try:
        for part in parts:
            seconds = budget.grant(part.seconds, part.least)
            if seconds is None:
                done(part, outcome("skipped", 0.0, f"{budget.left:.0f} s were left, it needs {part.least:.0f}"))
                continue
            begun(part)
            worker = worker or Worker(settings)
            result = _run_one(worker, part, seconds)
            if result["status"] != "ok":
                worker.stop()
                worker = None
            done(part, result)
    finally:
        if worker is not None:
            worker.stop()


def _run_one(worker: Worker, part: Part, seconds: float) -> dict[str, Any]:
    began = time.monotonic()
    try:
        result = worker.ask(part, seconds)
    except TimeoutError:
        passed = time.monotonic() - began
        if seconds < part.seconds:
            return outcome("skipped", passed, f"cut off: the time was up after {passed:.0f} s of it")
        return outcome("failed", passed, f"took more than its {part.seconds:.0f} s")
    if result is None:
        text = f"its process ended with code {worker.exit_code()}"
        return outcome("failed", time.monotonic() - began, text)
    return result
