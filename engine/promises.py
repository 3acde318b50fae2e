"""What an engine promised once it was warm: nothing compiles, nothing is captured, nothing that graphs hold moves.

A broken promise is counted always, and raised in debug mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ostinato.graphs.addresses import AddressRegistry
from ostinato.layers.errors import CaptureError
from ostinato.layers.kernels.compiled_count import compiled_forms, kernel_functions


class Promises:
    """``watching`` surrounds what may compile kernels; ``begin`` says that warm-up has ended."""

    def __init__(self) -> None:
        self.kernel_compiles = 0
        """Forms of our kernels that were compiled while this engine was watched: another one's are not counted."""
        self._addresses = AddressRegistry()
        self._functions: tuple[Any, ...] = ()
        self._warm = 0, 0
        self._warm_kernels = 0

    @contextlib.contextmanager
    def warming(self) -> Iterator[None]:
        """Within, kernels are imported and compiled."""
        before = compiled_forms(kernel_functions())
        yield
        self._functions = kernel_functions()
        self.kernel_compiles += compiled_forms(self._functions) - before

    def begin(self, pieces: int, captures: int, tensors: Mapping[str, Tensor]) -> None:
        """From now on no more than these may be compiled and captured, and ``tensors`` stay where they are."""
        self._warm, self._warm_kernels = (pieces + self.kernel_compiles, captures), self.kernel_compiles
        self._addresses.note(tensors)

    def forms(self) -> int:
        """Compiled forms of our kernels now: taken before and after a launch, the difference is its own."""
        return compiled_forms(self._functions)

    def late(self, pieces: int, captures: int) -> tuple[int, int]:
        """Compilations and captures since ``begin``."""
        compiles, captured = self._warm
        return pieces + self.kernel_compiles - compiles, captures - captured

    @property
    def late_kernels(self) -> int:
        """Kernels among the late compilations."""
        return self.kernel_compiles - self._warm_kernels

    def check(self, pieces: int, captures: int, tensors: Mapping[str, Tensor]) -> None:
        """Raise ``CaptureError`` for a broken promise, and name what moved."""
        late_compiles, late_captures = self.late(pieces, captures)
        if late_compiles or late_captures:
            raise CaptureError(f"after warm-up {late_compiles} compilations and {late_captures} captures")
        if captures:
            self._addresses.check(tensors)
