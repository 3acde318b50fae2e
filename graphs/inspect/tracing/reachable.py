"""Everything that a step can reach besides its arguments: closures, globals, the object it is a method of, modules.

Tensors by name, to say which memory a graph would read; plain Python values by name, to see which of them a run
changes. The walk follows containers and objects of the user's own classes, to a depth and a number; it calls no
property.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ostinato.graphs.inspect.source import is_users

MAX_DEPTH = 8
MAX_OBJECTS = 50_000

PLAIN = (int, float, str, bool, bytes, complex, type(None))


class Reachable:
    """What was found: name to tensor, to module, to plain value; a container's length counts as its value."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.modules: dict[int, str] = {}
        self.values: dict[str, Any] = {}
        self._seen: set[int] = set()
        self.kept: list[Any] = []
        """Every object that was looked into."""

    @classmethod
    def of(cls, values: Iterable[Any], names: Iterable[str]) -> Reachable:
        """What ``values`` hold, called by ``names``."""
        found = cls()
        for name, value in zip(names, values, strict=False):
            found.walk(name, value)
        return found

    def walk(self, name: str, value: Any, depth: int = 0) -> None:
        """Add ``value`` and what it holds, under ``name``."""
        if isinstance(value, PLAIN):
            self.values[name] = value
            return
        if id(value) in self._seen or depth > MAX_DEPTH or len(self._seen) > MAX_OBJECTS:
            return
        self._seen.add(id(value))
        self.kept.append(value)  # an id is a name only while its object lives
        if isinstance(value, Tensor):
            self.tensors[name] = value
            return
        for part, child in self._children(name, value):
            self.walk(part, child, depth + 1)

    def _children(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        dot = f"{name}." if name else ""
        if isinstance(value, torch.nn.Module):
            self.modules.setdefault(id(value), name)
            yield from _module_children(dot, value)
        elif isinstance(value, weakref.WeakValueDictionary | weakref.WeakKeyDictionary | weakref.WeakSet):
            self.values[f"len({name})"] = len(value)  # keeps nothing alive, so neither do we
        elif isinstance(value, Mapping):
            self.values[f"len({name})"] = len(value)
            yield from ((f"{name}[{key!r}]", child) for key, child in list(value.items()))
        elif isinstance(value, list | tuple | set | frozenset | collections.deque):
            if not isinstance(value, tuple):
                self.values[f"len({name})"] = len(value)
            yield from ((f"{name}[{number}]", child) for number, child in enumerate(list(value)))
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial) or hasattr(
            value, "__wrapped__"
        ):
            yield from _function_children(name, value)
        elif isinstance(value, type) and is_users(_file_of(value)):
            yield from ((f"{dot}{attribute}", child) for attribute, child in _class_state(value))
        elif not isinstance(value, type | types.ModuleType) and _is_users_object(value):
            yield from ((f"{dot}{attribute}", child) for attribute, child in _attributes(value))


def reachable(function: Callable[..., Any], inputs: Iterable[Any] = (), names: Iterable[str] = ()) -> Reachable:
    """What ``function`` can reach, ``inputs`` first, called by ``names``."""
    found = Reachable.of(inputs, names)
    found.walk("", function)  # modules are known by the paths in them, as in a state dict
    return found


def argument_names(function: Callable[..., Any], count: int) -> list[str]:
    """Names for ``count`` positional arguments, as the function calls them."""
    if isinstance(function, torch.nn.Module):
        function = function.forward
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variable = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "args")
    return [names[n] if n < len(names) else f"{variable}[{n - len(names)}]" for n in range(count)]


def _module_children(dot: str, module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for part in (module._parameters, module._buffers, module._modules):
        yield from ((f"{dot}{name}", child) for name, child in part.items() if child is not None)
    hidden = ("_parameters", "_buffers", "_modules", "_is_full_backward_hook")
    for name, child in list(vars(module).items()):
        if name not in hidden and "_hooks" not in name and name not in ("training", "_non_persistent_buffers_set"):
            yield f"{dot}{name}", child


def _function_children(name: str, function: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(function, functools.partial):
        yield name, function.func
        yield from ((f"partial[{n}]", value) for n, value in enumerate(function.args))
        yield from function.keywords.items()
        return
    bound = getattr(function, "__self__", None)
    if bound is not None:
        yield "self" if not isinstance(bound, torch.nn.Module) else "", bound
    inner = getattr(function, "__wrapped__", None)
    if inner is not None:
        yield name, inner
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None or not is_users(code.co_filename):
        return
    plain = getattr(function, "__func__", function)
    for variable, cell in zip(code.co_freevars, plain.__closure__ or (), strict=True):
        try:
            yield variable, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for variable in _names_used(code):
        if variable in plain.__globals__ and not isinstance(plain.__globals__[variable], types.ModuleType):
            yield variable, plain.__globals__[variable]
    own = getattr(plain, "__name__", name)
    yield from ((f"{own}.{key}", value) for key, value in vars(plain).items() if key != "__wrapped__")
    yield from ((f"{name}.default[{n}]", value) for n, value in enumerate(plain.__defaults__ or ()))


def _names_used(code: types.CodeType) -> list[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return list(dict.fromkeys([*code.co_names, *(name for nested in inner for name in _names_used(nested))]))


def _is_users_object(value: Any) -> bool:
    if dataclasses.is_dataclass(value):
        return True
    return is_users(_file_of(type(value)))


def _file_of(kind: type) -> str:
    module = sys.modules.get(kind.__module__)
    return getattr(module, "__file__", None) or inspect_file(kind) or "<unknown>"


def inspect_file(kind: type) -> str | None:
    """Where a class was written, if one of its functions tells."""
    for value in vars(kind).values():
        code = getattr(value, "__code__", None)
        if code is not None:
            return str(code.co_filename)
    return None


def _class_state(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class holds besides its functions and descriptors."""
    for name, value in list(vars(kind).items()):
        if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__"):
            yield name, value


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, slot) and slot not in ("__dict__", "__weakref__"):
                yield slot, getattr(value, slot)
