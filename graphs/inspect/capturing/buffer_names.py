"""Names for the tensors and modules that a step reaches: its arguments, its closure, the globals it uses.

An input is named by its parameter and the way to it (``cache.layers[0].keys``), a weight by its module's path, as
``reachable`` finds them. A tensor that the step gets at in another way has no name here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ostinato.graphs.inspect.tracing.reachable import Reachable, argument_names, reachable

Kind = Literal["input", "weight", "state"]


class Names(NamedTuple):
    """What is reached."""

    tensors: dict[str, tuple[Tensor, Kind]]
    modules: dict[int, str]
    """Path by ``id`` of the module."""


def names_of(function: Callable[..., Any], args: tuple[Any, ...]) -> Names:
    """The names for one call ``function(*args)``."""
    names = argument_names(function, len(args))
    inputs = Reachable.of(args, names).tensors
    found = reachable(function, args, names)

    def kind(name: str, tensor: Tensor) -> Kind:
        if isinstance(tensor, nn.Parameter):
            return "weight"
        return "input" if name in inputs else "state"

    return Names({name: (t, kind(name, t)) for name, t in found.tensors.items()}, found.modules)
