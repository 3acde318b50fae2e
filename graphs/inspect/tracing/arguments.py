"""Arguments of operators, as trees of lists, tuples and dictionaries: all that ATen knows, quicker than any pytree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_LEAVES = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout})
"""Most arguments that are no tensors, told without asking what else they could be."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in ``value``, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


def with_tensors_as(of: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with ``of(tensor)`` in the place of each tensor; named tuples become tuples."""
    if type(value) in _LEAVES:
        return value
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, list):
        return [with_tensors_as(of, part) for part in value]
    if isinstance(value, tuple):
        return tuple([with_tensors_as(of, part) for part in value])
    if isinstance(value, dict):
        return {key: with_tensors_as(of, part) for key, part in value.items()}
    if isinstance(value, torch.UntypedStorage | torch.TypedStorage):
        return f"a storage of {value.nbytes()} bytes"
    return value


@lru_cache(maxsize=4096)
def written_arguments(op: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments that the schema of ``op`` says are written."""
    arguments = enumerate(op._schema.arguments)
    return tuple((n, a.name) for n, a in arguments if a.alias_info is not None and a.alias_info.is_write)
