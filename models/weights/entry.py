"""What the loader needs to know of a tensor on disk, whatever the file's format. Knows no torch and no parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of the dtypes that can be loaded."""


class TensorEntry(Protocol):
    """One tensor of one file. ``dtype`` is a key of ``ITEM_SIZES``, or names what cannot be loaded."""

    @property
    def name(self) -> str:
        """As it is in the file."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def dtype(self) -> str:
        """Of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    @property
    def offset(self) -> int:
        """Grows with the tensors of a file, in the order in which they are best read."""

    @property
    def num_bytes(self) -> int:
        """Of all elements."""

    def read(self, buffer: memoryview, sizes: Iterable[int]) -> Iterator[int]:
        """Put the tensor's next bytes at the start of ``buffer``, as many as ``sizes`` say; yields each size.

        The elements come in order of their index, the last dimension first. ``ModelLoadError`` if they do not come.
        """
