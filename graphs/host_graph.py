"""A graph on a CPU: the step itself, called on its static buffers. The fast path where there is no device to record."""

from __future__ import annotations

from collections.abc import Callable


class HostGraph:
    """Same surface as a CUDA graph; replay calls the captured function, whose pieces are compiled."""

    @property
    def breaks(self) -> tuple[str, ...]:
        """Nothing splits it: everything is called anyway."""
        return ()

    def __init__(self) -> None:
        self._step: Callable[[], object] | None = None

    def capture(self, step: Callable[[], object]) -> None:
        """Keep ``step``; the graph set has warmed it up already."""
        self._step = step

    def replay(self) -> None:
        """Run the step on what its buffers hold now."""
        if self._step is None:
            raise RuntimeError("replay of a graph that was never captured, or was reset")
        self._step()

    def reset(self) -> None:
        """Let go of the step and what it holds."""
        self._step = None
