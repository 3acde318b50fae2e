"""A value in plain data by a path with dots: ``graphs.8.memory.own_bytes``. Knows no torch.

A key may have dots in it (``metrics.layers.0.mlp.nodes``): the longest one that fits is taken. Entries of a list go by
number.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from ostinato.layers.errors import ConfigError


def look_up(data: Any, path: str) -> Any:
    """The value at ``path``; ``ConfigError`` names the nearest path that there is."""
    found = _find(data, path.split("."))
    if not found:
        known = [*paths(data)]
        near = difflib.get_close_matches(path, known, 1, 0.4)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ConfigError(f"gate {path}: there is no such value in the file{hint}")
    return found[0]


def paths(data: Any, before: str = "", levels: int = 4) -> Iterator[str]:
    """Every path into nested objects, lists not entered, at most ``levels`` deep."""
    if isinstance(data, dict) and levels:
        for name, value in data.items():
            path = f"{before}.{name}" if before else str(name)
            yield path
            yield from paths(value, path, levels - 1)


def _find(data: Any, parts: list[str]) -> list[Any]:
    """The value in a list, or an empty one."""
    if not parts:
        return [data]
    if isinstance(data, list):
        index = int(parts[0]) if parts[0].isdecimal() else len(data)
        return _find(data[index], parts[1:]) if index < len(data) else []
    if not isinstance(data, dict):
        return []
    for length in range(len(parts), 0, -1):
        key = ".".join(parts[:length])
        if key in data and (found := _find(data[key], parts[length:])):
            return found
    return []
