"""The plain Python state of a step (attributes, lists, dictionaries, closed-over variables), to be put back.

So that a step can be run twice from the same state. Copies are shallow; tensors are not copied here but by ``keeper``.
Containers of other kinds than Python's own, and slots, stay as the step left them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


class PythonState:
    """What the given objects held at one time."""

    def __init__(self, objects: Iterable[Any]) -> None:
        """Remember the contents of ``objects``: containers, functions, modules, instances with attributes."""
        holders = {id(holder): holder for each in objects for holder in _holders(each)}
        self._saved = [(holder, _contents(holder)) for holder in holders.values()]

    def restore(self) -> None:
        """Put back what has changed since."""
        for holder, before in self._saved:
            if isinstance(holder, dict):
                _restore_dict(holder, before)
            elif isinstance(holder, list | deque):
                if len(holder) != len(before) or any(a is not b for a, b in zip(holder, before, strict=True)):
                    holder.clear()
                    holder.extend(before)
            elif isinstance(holder, set):
                if holder != before:
                    holder.clear()
                    holder.update(before)
            elif isinstance(holder, type):
                _restore_class(holder, before)
            elif before and _contents(holder) != before:
                holder.cell_contents = before[0]


def _holders(value: Any) -> list[Any]:
    """What of ``value`` can be assigned to."""
    if type(value) in (dict, list, set, deque, defaultdict, OrderedDict, Counter):
        return [value]
    if isinstance(value, type):
        return [value]
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType):
        return [value.__globals__, vars(value), *(value.__closure__ or ())]
    if isinstance(value, nn.Module):
        return [vars(value), value._parameters, value._buffers]
    return [vars(value)] if hasattr(value, "__dict__") else []


def _contents(holder: Any) -> Any:
    if isinstance(holder, (dict, list, set, deque)):
        return holder.copy()
    if isinstance(holder, type):
        return dict(vars(holder))
    assert isinstance(holder, CellType)
    try:
        return _Cell((holder.cell_contents,))
    except ValueError:  # not assigned yet
        return _Cell()


class _Cell(tuple[Any, ...]):
    """The contents of a cell; equal if they are the same object."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Cell)
            and len(self) == len(other)
            and all(a is b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def _restore_dict(holder: dict[Any, Any], before: dict[Any, Any]) -> None:
    for key in [key for key in holder if key not in before]:
        del holder[key]
    for key, value in before.items():
        if key not in holder or holder[key] is not value:
            holder[key] = value


def _restore_class(kind: type, before: dict[str, Any]) -> None:
    for name in [name for name in vars(kind) if name not in before]:
        delattr(kind, name)
    for name, value in before.items():
        if vars(kind).get(name) is not value:
            setattr(kind, name, value)
