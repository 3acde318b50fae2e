"""What every kind of graph can do, and how a function says that it wants to stay outside of them.

A region that cannot be captured (it synchronises, allocates on the host, calls a library) is marked with
``eager_break``. While a step is captured, such a call splits it: what came before is one piece, the call runs as it is,
what follows is the next piece; replay runs them in turn. Results of the call go into the tensors that its first run
returned, where the next piece reads them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ostinato.layers.errors import CaptureError

Function = TypeVar("Function", bound=Callable[..., Any])


class Graph(Protocol):
    """One step: captured once, replayed often."""

    @property
    def breaks(self) -> tuple[str, ...]:
        """Names of the functions that split it, in order."""

    def capture(self, step: Callable[[], object]) -> None:
        """Record one step, which has run before on the same stream."""

    def replay(self) -> None:
        """Run the recorded step."""

    def reset(self) -> None:
        """Free what it holds."""


class Capture(Protocol):
    """A capture under way."""

    def call_eagerly(self, call: EagerCall) -> Any:
        """Split the graph around ``call`` and run it; returns its result."""


@dataclass
class EagerCall:
    """A call that stays outside of graphs: the same function on the same tensors at every replay."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None

    def first(self) -> Any:
        """Run it, and keep what it returned as the place of later results."""
        self.result = self.function(*self.args, **self.kwargs)
        return self.result

    def replay(self) -> None:
        """Run it again; tensors it returns are copied into those of the first run."""
        places = tuple(leaf for leaf in tree_leaves(self.result) if isinstance(leaf, Tensor))
        store_results(self.name, places, self.function(*self.args, **self.kwargs))


def store_results(name: object, places: tuple[Tensor, ...], result: Any) -> None:
    """Copy the tensors in ``result`` into ``places``; ``CaptureError``, by ``name``, if a shape is another one."""
    new = [result] if isinstance(result, Tensor) else [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    for place, value in zip(places, new, strict=True):
        if place.shape != value.shape:  # copy_ would broadcast, and hide it
            shapes = f"{list(place.shape)} at capture, {list(value.shape)} at replay"
            raise CaptureError(f"{name} gave {shapes}: its shape depends on the data")
        if place is not value:
            place.copy_(value)


class _Current(threading.local):
    capture: Capture | None = None


_current = _Current()


@contextlib.contextmanager
def capturing(capture: Capture) -> Iterator[None]:
    """Within, ``eager_break`` functions of this thread split ``capture``."""
    if _current.capture is not None:
        raise CaptureError("a capture inside of a capture")
    _current.capture = capture
    try:
        yield
    finally:
        _current.capture = None


@contextlib.contextmanager
def not_capturing() -> Iterator[None]:
    """Within, nothing splits the capture: what runs is recorded, or replayed, as a whole."""
    before, _current.capture = _current.capture, None
    try:
        yield
    finally:
        _current.capture = before


def eager_break(function: Function) -> Function:
    """Mark a function that cannot be captured: graphs are split around its calls, and it runs eagerly between them.

    Its tensor arguments keep their addresses; other arguments keep the values they had at capture. Inside a function
    that is compiled it must be an operator: ``torch.library.custom_op(...)(eager_break(function))``.
    """

    @functools.wraps(function)
    def split(*args: Any, **kwargs: Any) -> Any:
        capture = _current.capture
        if capture is None:
            return function(*args, **kwargs)
        with not_capturing():
            return capture.call_eagerly(EagerCall(function.__qualname__, function, args, kwargs))

    return cast(Function, split)
