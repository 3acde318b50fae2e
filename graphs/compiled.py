"""A function compiled exactly once, for one class of shapes, with nothing left to recompile it.

Each ``CompiledPiece`` owns a copy of its function's code object, so its compiled form is its engine's alone and dies
with it; a process may hold any number. Which dimensions are symbolic is said, not guessed: ``mark_dynamic`` fails the
compilation if one would be specialised. Dynamo's guards are dropped: what they would check on every call (modes,
shapes, the identity of modules) is fixed by the caller, who runs each piece under ``neutral_state`` and only ever with
the shape class it was compiled for, and Inductor's own checks of sizes and strides stay in place.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import reset_code

from ostinato.graphs.compile_scope import compile_scope
from ostinato.layers.errors import CaptureError

SymbolicDims = Callable[..., Iterable[tuple[Tensor, int]]]
"""From a call's arguments: the (tensor, dimension) pairs whose size varies from call to call."""


def no_guards(guards: Sequence[object]) -> list[bool]:
    """Dynamo's ``guard_filter_fn``: keep none."""
    return [False for _ in guards]


def trace_failure(error: Exception) -> str | None:
    """What ``torch.compile`` found in a function that it cannot compile, in one line; None for any other error."""
    if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
        return None
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class CompiledPiece:
    """``function`` under ``torch.compile(fullgraph=True)``; the first call compiles, every later one only runs."""

    def __init__(self, function: Callable[..., Any], symbolic: SymbolicDims) -> None:
        own = types.FunctionType(
            function.__code__.replace(),
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        own.__kwdefaults__ = function.__kwdefaults__
        self.name = function.__name__
        self._code = own.__code__
        self._symbolic = symbolic
        self._compiled = torch.compile(own, fullgraph=True, options={"guard_filter_fn": no_guards})
        self._call = self._compile
        self.compiles = 0
        # Dynamo's tables keep a code object and its compiled form alive through each other.
        weakref.finalize(self, reset_code, self._code).atexit = False

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        return self._call(*args)

    def _compile(self, *args: Any) -> Any:
        for tensor, dim in self._symbolic(*args):
            torch._dynamo.mark_dynamic(tensor, dim)
        with compile_scope():
            result = self._compiled(*args)
        if self.lost:
            raise CaptureError(f"{self.name}: torch.compile did not compile it (is it disabled in this process?)")
        self.compiles += 1
        self._call = self._compiled
        return result

    @property
    def lost(self) -> bool:
        """Whether there is no compiled form: before the first call, and after the host's ``torch._dynamo.reset()``."""
        return not torch._dynamo.eval_frame._debug_get_cache_entry_list(self._code)

    def compile_again(self) -> None:
        """Let the next call compile, as the first one did."""
        self._call = self._compile
