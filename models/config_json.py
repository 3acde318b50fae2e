"""Typed, bounded reads of a checkpoint's JSON files. Nothing in them is used before it passed through here.

Knows JSON and numbers, no family. ``null`` counts as absent everywhere, as transformers treats it. Whatever is refused
is a ``ModelLoadError`` that names the file, the key, what was expected and what was got.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from ostinato.layers.errors import ModelLoadError
from ostinato.models.config_reads import Watched, watched

MAX_JSON_BYTES = 100_000_000  # no honest file comes near: the index of a 2,000-shard model has about 10 MB
MAX_TOKEN_ID = (1 << 22) - 1


def read_json_object(path: Path) -> dict[str, object]:
    """The JSON object that ``path`` holds; ``ModelLoadError`` when it is absent, unreadable, or no object."""
    if not path.is_file():
        raise ModelLoadError(f"{path}: no such file")
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ModelLoadError(f"{path}: expected at most {MAX_JSON_BYTES:,} bytes, got {size:,}")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def shown(value: object) -> str:
    """``value`` as an error shows it: quoted, and short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_integer(value: object, low: int, high: int) -> TypeGuard[int]:
    """Whether a JSON value is an integer in ``[low, high]``; ``true`` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


class ConfigJson:
    """A JSON object whose values are read by type and range. ``place`` is how errors name it."""

    def __init__(self, values: Mapping[str, object], place: str = "config.json") -> None:
        self.values = watched(values, place)
        self.place = place

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and not null."""
        return self.values.get(key) is not None

    def _value(self, key: str, default: object) -> object:
        """What is under ``key``, or else ``default``."""
        value = self.values.get(key)
        if value is None and default is not None and isinstance(self.values, Watched):
            self.values.missing(key, default)
        return default if value is None else value

    def refusal(self, key: str, expected: str, got: object = None) -> ModelLoadError:
        """The error for a value this engine does not take."""
        value = self.values.get(key) if got is None else got
        found = "nothing" if value is None else shown(value)
        return ModelLoadError(f"{self.place}: {key}: expected {expected}, got {found}")

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in ``[low, high]``; ``default`` when absent (none: required)."""
        value = self._value(key, default)
        if not is_integer(value, low, high):
            raise self.refusal(key, f"an integer from {low:,} to {high:,}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in ``[low, high]``, as a float; ``default`` when absent (none: required)."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.refusal(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """``true`` or ``false``."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, "a string")
        return value

    def section(self, key: str) -> ConfigJson | None:
        """The object under ``key``; ``None`` when it is absent or empty."""
        value = self.values.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.refusal(key, "an object")
        return ConfigJson(value, f"{self.place}: {key}")

    def token_ids(self, key: str) -> frozenset[int]:
        """One token id or a list of them; empty when absent."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(is_integer(item, 0, MAX_TOKEN_ID) for item in ids):
            raise self.refusal(key, "a token id or a list of token ids")
        return frozenset(ids)
