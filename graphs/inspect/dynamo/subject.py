"""What of a target is compiled: a copy of its function, as it was written, that nothing else in the process runs.

A copied code object has its own place in Dynamo's cache, so that neither the host's compiled form of the function is
used or thrown away, nor ours found by the host.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizedModule

from ostinato.graphs.inspect.source import Place, is_users


@dataclass(frozen=True)
class Subject:
    """A function to compile, and how it was compiled where it came from."""

    function: Callable[..., Any]
    original: Callable[..., Any]
    """The same, not compiled, as the host has it."""
    place: Place | None
    """Where it is defined; None for what has no Python code."""
    fullgraph: bool
    dynamic: bool | None
    disabled: bool
    """Whether torch.compile was told to leave it alone."""

    def named(self, expression: str) -> str:
        """Dynamo's names in the words of the user's: of arguments, of the module, of what a call returned."""
        expression = re.sub(r"___stack\d+", "(the break's result)", expression)
        if isinstance(self.function, types.MethodType) or self.function.__code__.co_filename != __file__:
            return expression
        names = dict(enumerate(_parameters(self.original)))
        expression = re.sub(r"\bargs\[(\d+)\]", lambda found: names.get(int(found[1]), found[0]), expression)
        return re.sub(r"\bfunction\.", "self.", expression)


def subject_of(function: Callable[..., Any]) -> Subject:
    """``function`` may be a function, a method, a module or another object, compiled or not."""
    disabled = bool(getattr(function, "_torchdynamo_disable", False))
    context = None if disabled else _compile_context(function)
    original = function if disabled else _uncompiled(function)
    fullgraph = bool(getattr(context, "fullgraph", False) or getattr(context, "error_on_graph_break", False))
    dynamic = getattr(context, "_dynamic", None)
    return Subject(_own(original), original, _defined_at(original), fullgraph, dynamic, disabled)


def _parameters(function: Any) -> list[str]:
    called = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        return list(inspect.signature(called).parameters)
    except (TypeError, ValueError):  # of C
        return []


def _uncompiled(function: Any) -> Any:
    if isinstance(function, OptimizedModule):
        return function._orig_mod
    while hasattr(function, "_torchdynamo_orig_callable"):
        function = function._torchdynamo_orig_callable
    return function


def _compile_context(function: Any) -> Any:
    """The object in which torch.compile keeps what it was given; None if ``function`` is not compiled."""
    if isinstance(function, OptimizedModule):
        return function.dynamo_ctx
    cells = getattr(function, "__closure__", None) or ()
    kept = (cell.cell_contents for cell in cells if hasattr(function, "_torchdynamo_orig_callable"))
    return next((each for each in kept if isinstance(each, torch._dynamo.eval_frame._TorchDynamoContext)), None)


def _own(function: Any) -> Callable[..., Any]:
    """A copy, or for what has no code of the user's at its top a function that calls it."""
    if isinstance(function, types.MethodType) and _is_written_by_user(function.__func__):
        return types.MethodType(_copy(function.__func__), function.__self__)
    if _is_written_by_user(function):
        return _copy(function)

    def call(*args: Any) -> Any:
        return function(*args)

    return _copy(call, _globals(function))


def _globals(function: Any) -> dict[str, Any] | None:
    """Those of the user's module: Dynamo imports the modules of all others by name, and one of a file has none."""
    called = function.forward if isinstance(function, torch.nn.Module) else function
    if not hasattr(called, "__globals__") and not hasattr(called, "__func__"):
        called = getattr(type(called), "__call__", called)  # noqa: B004  its definition, not whether it has one
    return getattr(inspect.unwrap(getattr(called, "__func__", called)), "__globals__", None)


def _is_written_by_user(function: Any) -> bool:
    return isinstance(function, types.FunctionType) and is_users(function.__code__.co_filename)


def _copy(function: Any, names: dict[str, Any] | None = None) -> types.FunctionType:
    """``names``: globals, if not the function's own."""
    code, names = function.__code__.replace(), function.__globals__ if names is None else names
    own = types.FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _defined_at(function: Any) -> Place | None:
    function = function.forward if isinstance(function, torch.nn.Module) else function
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None) or getattr(vars(type(function)).get("__call__"), "__code__", None)
    return None if code is None else Place(code.co_filename, code.co_firstlineno, code.co_qualname)
