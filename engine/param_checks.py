"""Checks of single values that callers give: each returns a plain Python value, or raises ``ParamError`` by name.

Torch-free and numpy-free; numpy scalars are taken and become Python numbers. Knows no parameter.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from ostinato.layers.errors import ParamError

INT32_MAX = 2**31 - 1  # top_k, lengths and token ids travel to the device as int32
MAX_STRING_LENGTH = 1_000
"""Characters of one string that a request gives."""

Item = TypeVar("Item")


def nearest(name: str, known: Collection[str]) -> str:
    """The hint after an unknown option name: ``"; did you mean 'top_p'?"``, or the list of all known names."""
    from difflib import get_close_matches  # only paid for on a mistake

    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def show(value: object) -> str:
    """A value for an error message: short, and never an error of its own (a 5,000-digit int cannot be printed)."""
    try:
        text = repr(value)
    except Exception:
        text = "a value that cannot be printed"
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def integer(name: str, value: object, low: int, high: int) -> int:
    """An integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ParamError(f"{name} must be an integer, got {show(value)}")
    number = operator.index(value)
    if not low <= number <= high:
        raise ParamError(f"{name} must be from {low} to {high}, got {show(number)}")
    return number


def real(name: str, value: object) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ParamError(f"{name} must be a number, got {show(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ParamError(f"{name} must be finite, got {show(value)}")
    return number


def within(name: str, value: object, low: float, high: float) -> float:
    """A number in [low, high]."""
    number = real(name, value)
    if not low <= number <= high:
        raise ParamError(f"{name} must be from {low:g} to {high:g}, got {show(value)}")
    return number


def fraction(name: str, value: object, *, zero_allowed: bool) -> float:
    """A number in [0, 1] or (0, 1]."""
    number = real(name, value)
    if not 0 <= number <= 1 or (number == 0 and not zero_allowed):
        raise ParamError(f"{name} must be in {'[' if zero_allowed else '('}0, 1], got {show(value)}")
    return abs(number)


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ParamError(f"{name} must be True or False, got {show(value)}")
    return value


def string(name: str, value: object) -> str:
    """A string that is neither empty nor longer than ``MAX_STRING_LENGTH``."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_STRING_LENGTH:
        raise ParamError(f"{name} must be a string of 1 to {MAX_STRING_LENGTH:,} characters, got {show(value)}")
    return str(value)


def items(name: str, value: object, limit: int, each: Callable[[str, object], Item]) -> tuple[Item, ...]:
    """A list or a tuple of at most ``limit`` items that all pass ``each``."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        raise ParamError(f"{name} must be a list or a tuple, got {show(value)}")
    if len(value) > limit:
        raise ParamError(f"{name} may have {limit:,} items, got {len(value):,}")
    return tuple(each(name, item) for item in value)


def function(name: str, value: object) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise ParamError(f"{name} must be callable, got {show(value)}")
    return value


def token_id(name: str, value: object) -> int:
    """A token id, below every vocabulary's limit; the engine checks it against its own."""
    return integer(name, value, 0, INT32_MAX)


def biases(name: str, value: object, limit: int, largest: float) -> tuple[tuple[int, float], ...]:
    """A mapping of at most ``limit`` token ids to numbers in [-largest, largest], as pairs in order of the ids.

    Such pairs are taken too, so that what was stored can be given again.
    """
    given = value.items() if isinstance(value, Mapping) else value if isinstance(value, tuple) else None
    if given is None or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in given):
        raise ParamError(f"{name} must map token ids to numbers, got {show(value)}")
    if len(given) > limit:
        raise ParamError(f"{name} may have {limit:,} items, got {len(given):,}")
    return tuple(sorted({token_id(name, key): within(name, bias, -largest, largest) for key, bias in given}.items()))
