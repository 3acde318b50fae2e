"""Static inputs: the tensors a graph would be captured on, filled with each step's new values.

Tensors keep their memory and take new values by ``copy_``; Python values are the new step's own, as its caller would
pass them. What cannot be brought into the same memory (another shape) is passed as it is, and named.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostinato.graphs.inspect.report import Finding
from ostinato.graphs.inspect.tracing.reachable import PLAIN, Reachable


class Change(NamedTuple):
    """A part of the inputs that is another one with other values."""

    name: str
    before: str
    after: str


def another_form(change: Change) -> Finding:
    """An input tensor whose shape or dtype is another one for the same batch size."""
    message = f"input {change.name} has another shape or dtype for the same batch size; a graph has one form"
    evidence = f"{change.before} at capture, {change.after} later"
    return Finding.of("frozen-value", "error", None, message, None, evidence, "pad it to a fixed shape")


class Binding:
    """Arguments in fixed memory."""

    def __init__(self, names: list[str], inputs: tuple[Any, ...]) -> None:
        self.names = names
        self.args = inputs

    def load(self, fresh: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Change], list[Change]]:
        """Bring the values of ``fresh`` in; returns the arguments, changed shapes and changed Python values."""
        loading = _Loading()
        args = tuple(
            loading.value(name, static, new) for name, static, new in zip(self.names, self.args, fresh, strict=True)
        )
        return args, loading.shapes, loading.values


class _Loading:
    def __init__(self) -> None:
        self.shapes: list[Change] = []
        self.values: list[Change] = []

    def value(self, name: str, static: Any, fresh: Any) -> Any:
        if isinstance(static, Tensor) and isinstance(fresh, Tensor):
            return self._tensor(name, static, fresh)
        if type(static) is not type(fresh):
            self.values.append(Change(name, repr(static)[:60], repr(fresh)[:60]))
            return fresh
        if isinstance(static, PLAIN):
            if static != fresh:
                self.values.append(Change(name, repr(static)[:60], repr(fresh)[:60]))
            return fresh
        if isinstance(static, dict):
            return type(fresh)(
                {k: self.value(f"{name}[{k!r}]", static[k], v) if k in static else v for k, v in fresh.items()}
            )
        if isinstance(static, list | tuple):
            return self._sequence(name, static, fresh)
        if dataclasses.is_dataclass(static):
            return self._dataclass(name, static, fresh)
        return self._object(name, static, fresh)

    def _tensor(self, name: str, static: Tensor, fresh: Tensor) -> Tensor:
        if static.shape != fresh.shape or static.dtype != fresh.dtype:
            before, after = (f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in (static, fresh))
            self.shapes.append(Change(name, before, after))
            return fresh
        if static is not fresh:
            with torch.no_grad():
                static.copy_(fresh)
        return static

    def _sequence(self, name: str, static: Any, fresh: Any) -> Any:
        if len(static) != len(fresh):
            self.values.append(Change(f"len({name})", str(len(static)), str(len(fresh))))
            return fresh
        parts = [self.value(f"{name}[{n}]", a, b) for n, (a, b) in enumerate(zip(static, fresh, strict=True))]
        return type(fresh)(*parts) if hasattr(fresh, "_fields") else type(fresh)(parts)

    def _dataclass(self, name: str, static: Any, fresh: Any) -> Any:
        own = {f.name for f in dataclasses.fields(static) if f.init}
        parts = {n: self.value(f"{name}.{n}", getattr(static, n), getattr(fresh, n)) for n in own}
        return dataclasses.replace(fresh, **parts)

    def _object(self, name: str, static: Any, fresh: Any) -> Any:
        """An object that we cannot make: keep it, and fill the tensors that it holds."""
        if static is fresh:
            return static
        mine, new = Reachable(), Reachable()
        mine.walk(name, static)
        new.walk(name, fresh)
        if not mine.tensors:
            return fresh
        for path, tensor in mine.tensors.items():
            if path in new.tensors:
                self._tensor(path, tensor, new.tensors[path])
        return static
