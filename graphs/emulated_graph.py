"""A graph emulated on any device: the ATen calls of one uncompiled run, replayed on the same tensors.

What a CUDA graph freezes is frozen here too: Python control flow, scalars and tensor addresses. Replay calls each
recorded operation on the recorded arguments and copies its results into the recorded outputs, so whatever reads those
outputs later reads the new values. It does not see streams, reuse of addresses inside a memory pool, or the inside of
opaque custom operators, which are listed in ``opaque``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ostinato.layers.errors import CaptureError


@dataclass(frozen=True)
class RecordedCall:
    """One ATen call: what was called on what, and the tensors it returned."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]

    def replay(self) -> None:
        """Call again and bring the results to the recorded outputs; in-place results are there already."""
        results = [leaf for leaf in tree_leaves(self.op(*self.args, **self.kwargs)) if isinstance(leaf, Tensor)]
        for recorded, result in zip(self.outputs, results, strict=True):
            if recorded.shape != result.shape:  # copy_ would broadcast, and hide it
                shapes = f"{list(recorded.shape)} at capture, {list(result.shape)} at replay"
                raise CaptureError(f"{self.op} gave {shapes}: its shape depends on the data")
            if recorded is not result:
                recorded.copy_(result)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[RecordedCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:  # a view shares its base's storage: nothing to compute again
            outputs = tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            self.calls.append(RecordedCall(func, args, kwargs, outputs))
        return result


class EmulatedGraph:
    """The surface of a CUDA graph over recorded ATen calls."""

    def __init__(self) -> None:
        self.calls: list[RecordedCall] = []

    def capture(self, step: Callable[[], None]) -> None:
        """Run ``step`` once, uncompiled, and record it."""
        recorder = _Recorder()
        with recorder:
            step()
        self.calls = recorder.calls

    def replay(self) -> None:
        """Run the recorded calls on what the recorded tensors hold now."""
        if not self.calls:
            raise RuntimeError("replay of a graph that was never captured, or was reset")
        for call in self.calls:
            call.replay()

    def reset(self) -> None:
        """Free the recorded tensors."""
        self.calls = []

    @property
    def opaque(self) -> tuple[str, ...]:
        """Names of recorded operators whose inside was not recorded."""
        return tuple(sorted({str(call.op) for call in self.calls if call.op.namespace not in ("aten", "prims")}))
