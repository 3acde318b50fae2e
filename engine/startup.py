"""What start-up is doing, on one line of a terminal; silent where standard error is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm


class StartupProgress:
    """A context manager: call it with what begins now. ``seconds`` keeps how long each thing took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._bar: tqdm[None] | None = None
        self._doing: str | None = None
        self._began = 0.0

    def __enter__(self) -> StartupProgress:
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(bar_format="{desc} [{elapsed}]", leave=False, dynamic_ncols=True)
        return self

    def __call__(self, doing: str, fraction: float | None = None) -> None:
        """Show ``doing``, with a percentage where the fraction done is known."""
        if doing != self._doing:
            self._note()
            self._doing, self._began = doing, time.perf_counter()
        if self._bar is not None:
            self._bar.set_description_str(doing if fraction is None else f"{doing} {fraction:.0%}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._note()
        self._doing = None
        if self._bar is not None:
            self._bar.close()

    def _note(self) -> None:
        if self._doing is not None:
            passed = time.perf_counter() - self._began
            self.seconds[self._doing] = self.seconds.get(self._doing, 0.0) + passed
