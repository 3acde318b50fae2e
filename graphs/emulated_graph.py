"""A graph emulated on any device: the ATen calls of one uncompiled run, replayed on the same tensors.

What a CUDA graph freezes is frozen here too: Python control flow, scalars and tensor addresses. Replay calls each
recorded operation on the recorded arguments and copies its results into the recorded outputs, so whatever reads those
outputs later reads the new values. It does not see streams, reuse of addresses inside a memory pool, or the inside of
opaque custom operators, which are listed in ``opaque``.

Beside the engine's ``capture(step)`` it has the surface of ``torch.cuda.CUDAGraph``: ``capture_begin``,
``capture_end``, ``replay``, ``reset``, ``pool``. Unlike a capture on a GPU, this one runs what it records.
"""

from __future__ import annotations

import contextlib
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
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[RecordedCall | EagerCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with not_capturing():  # an operator that is an eager break inside is called again as a whole
            result = func(*args, **kwargs)
        outputs = _tensors(result)
        is_view = getattr(func, "is_view", False)  # an operator of higher order does not say
        if not (is_view and _is_view_of(outputs, _tensors((args, kwargs)))):  # of a view nothing is computed again
            self.calls.append(RecordedCall(func, args, kwargs, outputs))
        return result


def _tensors(tree: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _is_view_of(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> bool:
    """In inference mode ``reshape`` and ``to`` arrive whole: views by their schema, although they may copy."""
    storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in storages for tensor in outputs)


class EmulatedGraph:
    """The surface of a CUDA graph over recorded ATen calls."""

    def __init__(self, keep_graph: bool = False) -> None:
        """``keep_graph`` is what ``torch.cuda.CUDAGraph`` takes; there is no second form of this graph to keep."""
        self.calls: list[RecordedCall | EagerCall] = []
        self.keep_graph = keep_graph
        self._recorder: _Recorder | None = None
        self._begun: contextlib.ExitStack | None = None
        self._pool: tuple[int, int] = (0, 0)

    @property
    def breaks(self) -> tuple[str, ...]:
        """Names of the functions that are called anew at every replay."""
        return tuple(call.name for call in self.calls if isinstance(call, EagerCall))

    @property
    def count(self) -> int:
        """Calls recorded, so far where a capture is under way."""
        return len(self.calls if self._recorder is None else self._recorder.calls)

    def capture(self, step: Callable[[], object]) -> None:
        """Run ``step`` once, uncompiled, and record it."""
        self._recorder = recorder = _Recorder()
        try:
            with recorder, capturing(self):
                step()
        finally:
            self._recorder = None
        self.calls = recorder.calls

    def capture_begin(self, pool: tuple[int, int] | None = None, capture_error_mode: str = "global") -> None:
        """Record what this thread does from here to ``capture_end``; ``pool`` is remembered, not used."""
        if self._begun is not None:
            raise CaptureError("capture_begin: a capture is under way")
        self._pool = pool or (0, id(self))
        self._recorder = _Recorder()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._recorder)
            stack.enter_context(capturing(self))
            self._begun = stack.pop_all()

    def capture_end(self) -> None:
        """Keep what was recorded since ``capture_begin``."""
        if self._begun is None or self._recorder is None:
            raise CaptureError("capture_end without capture_begin")
        begun, recorder = self._begun, self._recorder
        self._begun = self._recorder = None
        begun.close()
        self.calls = recorder.calls

    def pool(self) -> tuple[int, int]:
        """The memory pool that the capture was given, or one of its own, by name."""
        return self._pool

    def instantiate(self) -> None:
        """Nothing is left to build: the calls are run as they were recorded."""

    def raw_cuda_graph(self) -> int:
        """There is none: ``CaptureError``."""
        raise CaptureError("an emulated graph has no cudaGraph_t; its calls are in .calls")

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
        return tuple(sorted({str(op) for op in recorded if getattr(op, "namespace", "") not in ("aten", "prims")}))
