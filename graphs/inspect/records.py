"""Frozen dataclasses from JSON: every field checked by its annotation, and what is wrong named by its path.

Knows ``int``, ``float``, ``str``, ``Any``, ``X | None``, ``Literal``, ``tuple[X, ...]``, ``tuple[X, Y]``,
``Mapping[str, X]`` and dataclasses of these. A field with a default may be missing; a field that is unknown is passed
over, for a later version may have added it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ostinato.layers.errors import ConfigError

Record = TypeVar("Record")


def read_record(kind: type[Record], data: Any, where: str) -> Record:
    """``data``, plain, as a dataclass; ``ConfigError`` by ``where`` and field."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    values: dict[str, Any] = {}
    for name, (annotation, required) in _fields(cast(Hashable, kind)).items():
        if name in data:
            values[name] = _read(annotation, data[name], f"{where}.{name}")
        elif required:
            raise ConfigError(f"{where}.{name} is missing")
    return kind(**values)


@cache
def _fields(kind: Hashable) -> dict[str, tuple[Any, bool]]:
    record: Any = kind
    hints = get_type_hints(record)
    return {f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in fields(record)}


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, UnionType):
        return None if data is None else _read(next(each for each in inner if each is not NoneType), data, where)
    if origin is Literal:
        return _one_of(inner, data, where)
    if origin is tuple:
        return _sequence(inner, data, where)
    if origin is Mapping:
        return _mapping(inner[1], data, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return read_record(kind, data, where)
    return _scalar(kind, data, where)


def _one_of(known: tuple[Any, ...], data: Any, where: str) -> Any:
    if data not in known:
        raise ConfigError(f"{where}: {data!r} is none of {', '.join(map(str, known))}")
    return data


def _sequence(inner: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise ConfigError(f"{where}: expected a list, got {type(data).__name__}")
    kinds = (inner[0],) * len(data) if inner[-1] is Ellipsis else inner
    if len(kinds) != len(data):
        raise ConfigError(f"{where}: expected {len(kinds)} entries, got {len(data)}")
    return tuple(_read(kind, each, f"{where}[{i}]") for i, (kind, each) in enumerate(zip(kinds, data, strict=True)))


def _mapping(kind: Any, data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    return {name: _read(kind, each, f"{where}[{name!r}]") for name, each in data.items()}


def _scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        data = float(data)
    if not isinstance(data, kind) or isinstance(data, bool):
        raise ConfigError(f"{where}: expected {kind.__name__}, got {type(data).__name__} {str(data)[:40]}")
    if kind is float and not math.isfinite(data):
        raise ConfigError(f"{where}: {data} is not a finite number")
    return data
