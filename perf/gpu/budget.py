"""Seconds to spend: how many each part may have of what is left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """``seconds`` from now on. ``clock`` is monotonic, in seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - self._clock())

    def grant(self, most: float, least: float) -> float | None:
        """Up to ``most`` seconds of what is left; None where that is less than ``least``: not worth beginning."""
        left = self.left
        return None if left < least else min(most, left)
