"""Names for the tensors and modules that a step reaches: its arguments, its closure, the globals it uses.

An input is named by its parameter and the way to it (``cache.layers[0].keys``), a weight by its module's path. If the
step reaches one module only, its names are the module's own, without a variable's name before them. A tensor that the
step finds in another way (a table of another module, a C extension) has no name here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["input", "weight", "state"]
_DEPTH = 8
_FUNCTIONS_DEPTH = 4


@dataclass
class Names:
    """What is reached, by identity."""

    tensors: dict[str, tuple[Tensor, Kind]] = field(default_factory=dict)
    modules: dict[int, str] = field(default_factory=dict)
    """Path by ``id`` of the module."""
    _seen: set[int] = field(default_factory=set)

    def add(self, name: str, value: Any, kind: Kind, depth: int = _DEPTH) -> None:
        """Name what ``value`` holds."""
        if isinstance(value, Tensor):
            self._tensor(name, value, "weight" if isinstance(value, nn.Parameter) else kind)
            return
        if depth == 0 or id(value) in self._seen or not _may_hold_tensors(value):
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self._module(name, value)
        for path, inner in _children(value):
            deeper = depth if isinstance(inner, nn.Module) else depth - 1
            self.add(f"{name}{path}".lstrip("."), inner, kind, deeper)

    def _tensor(self, name: str, tensor: Tensor, kind: Kind) -> None:
        if id(tensor) not in self._seen:
            self._seen.add(id(tensor))
            self.tensors.setdefault(name or "weight", (tensor, kind))

    def _module(self, name: str, module: nn.Module) -> None:
        self.modules.setdefault(id(module), name)
        for path, parameter in module._parameters.items():
            if parameter is not None:
                self._tensor(f"{name}.{path}".lstrip("."), parameter, "weight")
        for path, buffer in module._buffers.items():
            if buffer is not None:
                self._tensor(f"{name}.{path}".lstrip("."), buffer, "state")


def names_of(function: Callable[..., Any], args: tuple[Any, ...]) -> Names:
    """The names for one call ``function(*args)``."""
    names = Names()
    roots = dict(_roots(function, set(), _FUNCTIONS_DEPTH))
    modules = {name: root for name, root in roots.items() if isinstance(root, nn.Module)}
    alone = len({id(module) for module in modules.values()}) == 1
    for name, root in modules.items():
        names.add("" if alone else name, root, "state")
    for name, value in zip(_parameter_names(function, len(args)), args, strict=True):
        names.add(name, value, "input")
    for name, root in roots.items():
        names.add(name, root, "state")
    return names


def _parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "argument")
    return named[:count] + [f"{rest}[{i}]" for i in range(count - len(named))]


def _roots(function: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Name and value of what ``function``, and the functions that it calls by name, can reach."""
    if depth == 0 or id(function) in seen:
        return
    seen.add(id(function))
    if isinstance(function, functools.partial):
        yield from _roots(function.func, seen, depth)
        yield from ((f"argument[{i}]", value) for i, value in enumerate(function.args))
        yield from function.keywords.items()
    elif isinstance(function, nn.Module):
        yield "module", getattr(function, "_orig_mod", function)
    elif isinstance(function, MethodType):
        yield "self", function.__self__
        yield from _roots(function.__func__, seen, depth)
    elif isinstance(function, FunctionType):
        for name, value in _free_variables(getattr(function, "_torchdynamo_orig_callable", function)):
            if isinstance(value, FunctionType | MethodType | functools.partial):
                yield from _roots(value, seen, depth - 1)
            else:
                yield name, value
    elif callable(function):
        yield "self", function


def _free_variables(function: Any) -> Iterator[tuple[str, Any]]:
    function = inspect.unwrap(function)
    code: CodeType = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            continue
    for name in sorted(_names_used(code)):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _names_used(code: CodeType) -> set[str]:
    """Also by the functions written inside."""
    inner = (_names_used(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _may_hold_tensors(value: Any) -> bool:
    plain = type | ModuleType | str | bytes | int | float | FunctionType | torch.device | torch.dtype | torch.Generator
    return value is not None and not isinstance(value, plain)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        inside = {k: v for k, v in vars(value).items() if not k.startswith("_")}
        yield from ((f".{name}", child) for name, child in value._modules.items() if child is not None)
        yield from ((f".{name}", each) for name, each in inside.items())
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", each) for key, each in list(value.items()))
    elif isinstance(value, list | tuple):
        named = getattr(value, "_fields", None)
        yield from ((f".{named[i]}" if named else f"[{i}]", each) for i, each in enumerate(value))
    elif hasattr(value, "__dict__") and not type(value).__module__.startswith("torch."):
        yield from ((f".{name}", each) for name, each in list(vars(value).items()))
    elif hasattr(type(value), "__slots__"):
        slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
        yield from ((f".{name}", getattr(value, name)) for name in slots if hasattr(value, name))
