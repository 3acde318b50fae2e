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
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ostinato.graphs.graph import EagerCall, capturing, not_capturing, store_results
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
        store_results(self.op, self.outputs, self.op(*self.args, **self.kwargs))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[RecordedCall | EagerCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with not_capturing():  # an operator that is an eager break inside is called again as a whole
            result = func(*args, **kwargs)
        if not func.is_view:  # a view shares its base's storage: nothing to compute again
            outputs = tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            self.calls.append(RecordedCall(func, args, kwargs, outputs))
        return result


class EmulatedGraph:
    """The surface of a CUDA graph over recorded ATen calls."""

    def __init__(self) -> None:
        self.calls: list[RecordedCall | EagerCall] = []
        self._recorder: _Recorder | None = None

    @property
    def breaks(self) -> tuple[str, ...]:
        """Names of the functions that are called anew at every replay."""
        return tuple(call.name for call in self.calls if isinstance(call, EagerCall))

    def capture(self, step: Callable[[], object]) -> None:
        """Run ``step`` once, uncompiled, and record it."""
        self._recorder = recorder = _Recorder()
        try:
            with recorder, capturing(self):
                step()
        finally:
            self._recorder = None
        self.calls = recorder.calls

    def call_eagerly(self, call: EagerCall) -> Any:
        """Record ``call`` as one call, whatever it does inside."""
        if self._recorder is None:
            raise CaptureError(f"{call.name}: no capture is under way")
        with _disable_current_modes():
            result = call.first()
        self._recorder.calls.append(call)
        return result

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
        recorded = [call.op for call in self.calls if isinstance(call, RecordedCall)]
        return tuple(sorted({str(op) for op in recorded if op.namespace not in ("aten", "prims")}))
