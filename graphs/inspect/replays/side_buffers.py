"""Copies of what modules and operations give, made as the step runs: within a capture they become part of the graph.

So a replay fills them anew, and they can be compared with those of an eager run without touching the step's code.
Modules first; then, between two modules, operation by operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ostinato.graphs.inspect.replays.keeper import written
from ostinato.graphs.inspect.source import users_stack
from ostinato.graphs.inspect.tracing.listening_mode import ListeningMode

_OWN = torch.ops.aten.detach.default
"""A call that torch makes of itself, now and then, for a tensor that it has just made."""


class Given(NamedTuple):
    """What a module or an operation gave."""

    name: str
    module: str
    at: tuple[str, int] | None
    values: tuple[Tensor, ...]
    ran: int
    """Operations that had run by then."""
    random: bool = False


class SideBuffers(ListeningMode):
    """Keeps what modules give, if ``window`` is None; else what the operations in it give."""

    def __init__(self, modules: Mapping[int, str], window: range | None = None) -> None:
        """``modules``: names by ``id``."""
        super().__init__()
        self.given: list[Given] = []
        self.count = 0
        self._names, self._window = modules, window
        self._inside: list[str] = []
        self._copying = False
        self._hooks: list[Any] = []

    def __enter__(self) -> SideBuffers:
        hooks = torch.nn.modules.module
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call, and keep what it gives."""
        result = func(*args, **kwargs)
        if self._copying or func is _OWN:
            return result
        index, self.count = self.count, self.count + 1
        if self._window is not None and index in self._window and "empty" not in func.name():
            values = _tensors(result) or written(func, args, kwargs)
            random = torch.Tag.nondeterministic_seeded in func.tags
            self._keep(str(func), self._inside[-1] if self._inside else "", values, random)
        return result

    def _enter_module(self, module: Any, _: Any) -> None:
        self._inside.append(self._names.get(id(module)) or type(module).__name__)

    def _leave_module(self, module: Any, _: Any, result: Any) -> None:
        name = self._inside.pop()
        if self._window is None:
            self._keep(name, name, _tensors(result))

    def _keep(self, name: str, module: str, values: list[Tensor], random: bool = False) -> None:
        stack = users_stack()
        self._copying = True
        try:
            with torch._C.DisableTorchFunction():
                copies = tuple(tensor.clone() for tensor in values)
        finally:
            self._copying = False
        self.given.append(Given(name, module, stack[0].at if stack else None, copies, self.count, random))


def _tensors(result: Any) -> list[Tensor]:
    """Of containers that torch knows, and of mappings such as the outputs of transformers."""
    if isinstance(result, Mapping):
        result = list(result.values())
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
