"""Python values that a run of the step changes: a replay changes none of them.

First a comparison of everything reachable before and after a run; where something changed, one more run under
``sys.settrace`` finds the line that does it.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import Tensor

from ostinato.graphs.inspect.source import Place, is_users
from ostinato.graphs.inspect.tracing.reachable import Reachable
from ostinato.graphs.inspect.tracing.residency import storage_key

MAX_LOOKS = 2000
"""After each line, of the whole state; then the line stays unknown."""

Look = Callable[[], Reachable]


def snapshot(found: Reachable) -> dict[str, Any]:
    """Comparable values by name; a tensor is its storage and shape."""
    return {**found.values, **{name: _identity(tensor) for name, tensor in found.tensors.items()}}


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Names that changed or are gone; new names only where no length tells of them."""
    changed = {name: (value, after.get(name)) for name, value in before.items() if after.get(name, _GONE) != value}
    new = {name: (None, after[name]) for name in after if name not in before and "[" not in name}
    return {**new, **changed}


def find_lines(look: Look, names: set[str], run: Callable[[], object]) -> dict[str, Place]:
    """Run once more and say which line of the user's code changes each of ``names``."""
    found: dict[str, Place] = {}
    for thorough in (False, True):  # looking after every line is slow: first only after those that say the name
        missing = names - found.keys()
        if missing:
            found |= _watched(_Watch(look, missing, thorough), run)
    return found


def _watched(watch: _Watch, run: Callable[[], object]) -> dict[str, Place]:
    before = sys.gettrace()
    sys.settrace(watch.on_call)
    try:
        run()
    finally:
        sys.settrace(before)
    if watch.thorough:
        watch.compare()
    return watch.found


class _Watch:
    def __init__(self, look: Look, names: set[str], thorough: bool) -> None:
        self._look = look
        self._names = names
        self._words = {words[-1] for name in names if (words := re.findall(r"\w+", re.sub(r"\[[^]]*\]", "", name)))}
        self._latest: Place | None = None
        self._looks = 0
        self._last = self._now()
        self.thorough = thorough
        self.found: dict[str, Place] = {}

    def _now(self) -> dict[str, Any]:
        self._looks += 1
        found = snapshot(self._look())
        return {name: found.get(name, _GONE) for name in self._names}

    def on_call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self.on_line if is_users(frame.f_code.co_filename) else None

    def on_line(self, frame: FrameType, event: str, _: Any) -> Any:
        """A line is about to run, or a function returns: what changed since was the line before."""
        if self._latest is not None and len(self.found) < len(self._names) and self._worth_a_look(self._latest):
            self.compare()
        code = frame.f_code
        self._latest = Place(code.co_filename, frame.f_lineno, code.co_qualname)
        return self.on_line

    def _worth_a_look(self, place: Place) -> bool:
        if self.thorough:
            return self._looks < MAX_LOOKS
        line = linecache.getline(place.file, place.line)
        return any(word in line for word in self._words)

    def compare(self) -> None:
        """Blame the line that ran last for what changed since the last look."""
        now = self._now()
        for name in self._names:
            if now[name] != self._last[name] and name not in self.found and self._latest is not None:
                self.found[name] = self._latest
        self._last = now


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return (storage_key(tensor), tuple(tensor.shape), tensor.data_ptr() if tensor.device.type != "meta" else 0)


_GONE = object()
