"""Who looks for what in config.json: while somebody watches, each `ConfigJson` tells of every key that is looked for.

The watcher cannot travel with the values: families read copies of them, with other names added (``{**values, ...}``).
So it is set for the time of a with statement, in its thread. Knows no key and no family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Note = Callable[[Mapping[str, object], str, str, object], None]
"""Called with the object that is read, its place, the key, and the default that stands in for it (None: none)."""

_note: ContextVar[Note | None] = ContextVar("note", default=None)


@contextmanager
def watching(note: Note) -> Iterator[None]:
    """Tell ``note`` of every read of the `ConfigJson` objects that are made meanwhile."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


def watched(values: Mapping[str, object], place: str) -> Mapping[str, object]:
    """``values``, with reads that are told of where somebody watches."""
    note = _note.get()
    if note is None:
        return values
    return Watched(values.values_read if isinstance(values, Watched) else values, place, note)


class Watched(Mapping[str, object]):
    """Tells of ``get`` and ``in``. Iterating, and indexing as copies do it, says nothing about a use."""

    def __init__(self, values: Mapping[str, object], place: str, note: Note) -> None:
        self.values_read = values
        self._place = place
        self._note = note

    def missing(self, key: str, default: object) -> None:
        """``default`` was taken for ``key``."""
        self._note(self.values_read, self._place, key, default)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        self._note(self.values_read, self._place, key, None)
        return self.values_read.get(key, default)

    def __contains__(self, key: object) -> bool:
        self._note(self.values_read, self._place, str(key), None)
        return key in self.values_read

    def __getitem__(self, key: str) -> object:
        return self.values_read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_read)

    def __len__(self) -> int:
        return len(self.values_read)
