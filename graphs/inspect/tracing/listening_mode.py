"""What all dispatch modes of the tool share, so that each of them counts the same calls.

Composite operators are taken apart: outside of inference mode torch has done so before a mode is asked, inside of it
not. Operators of higher order (``torch.cond``) are handed on, whole.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ListeningMode(TorchDispatchMode):
    """Hands every ATen operator to ``called``."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """A mode without this turns torch.compile off where a compiled function is first called."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take ``func`` apart, or hand it to ``called``."""
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return self.called_higher_order(func, args, kwargs)
        if is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self.called(func, args, kwargs)

    def called(self, op: torch._ops.OpOverload, args: Any, kwargs: Any) -> Any:
        """Call ``op``."""
        raise NotImplementedError

    def called_higher_order(self, op: Any, args: Any, kwargs: Any) -> Any:
        """Call an operator that takes functions; what it does inside is not seen."""
        return op(*args, **kwargs)


@lru_cache(maxsize=8192)
def is_composite(op: torch._ops.OpOverload) -> bool:
    """Whether the operator is nothing but others, which autograd would take it apart into."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"))
