"""What start-up is doing: a progress bar on a terminal, nothing elsewhere; and how long each part of it took."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class StartupProgress:
    """A context manager: call it with what begins now. ``seconds`` keeps how long each thing took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._shown: tuple[Progress, TaskID] | None = None
        self._doing: str | None = None
        self._began = 0.0

    def __enter__(self) -> StartupProgress:
        """Show the bar if standard error is a terminal."""
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
            progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._shown = progress, progress.add_task("", total=None)
            progress.start()
        return self

    def __call__(self, doing: str, fraction: float | None = None) -> None:
        """Show ``doing``, with a bar where the fraction done is known."""
        if doing != self._doing:
            self._note()
            self._doing, self._began = doing, time.perf_counter()
        if self._shown is not None:
            progress, task = self._shown
            total = None if fraction is None else 1.0
            progress.update(task, description=doing, total=total, completed=fraction or 0.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._note()
        self._doing = None
        if self._shown is not None:
            self._shown[0].stop()

    def _note(self) -> None:
        if self._doing is not None:
            passed = time.perf_counter() - self._began
            self.seconds[self._doing] = self.seconds.get(self._doing, 0.0) + passed
