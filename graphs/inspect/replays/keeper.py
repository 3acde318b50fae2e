"""Keeps what a run changes and computes: external tensors as they were before a write, and results of chosen calls.

Runs as the innermost mode, so it counts calls as ``trace.record`` does. Sees a write only where the operator's schema
declares it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from ostinato.graphs.emulated_graph import EmulatedGraph, RecordedCall
from ostinato.graphs.inspect.tracing.arguments import tensors_in, written_arguments
from ostinato.graphs.inspect.tracing.listening_mode import ListeningMode
from ostinato.graphs.inspect.tracing.residency import storage_key


class Keeper(ListeningMode):
    """Listens to one run."""

    def __init__(self, window: range = range(0), graph: EmulatedGraph | None = None) -> None:
        """``window``: the calls whose results are kept; ``graph``: the emulated graph that records the same run."""
        super().__init__()
        self.before = Saved()
        self.results: dict[int, tuple[Tensor, ...]] = {}
        self.recorded: dict[int, int] = {}
        """Call index -> index in ``graph.calls``; views are not recorded."""
        self.count = 0
        self._window, self._graph = window, graph
        self._made: dict[int, StorageWeakRef] = {}

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Keep, call, keep."""
        index, self.count = self.count, self.count + 1
        given = written(func, args, kwargs)
        drawn = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Generator)]
        if given or drawn:
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                self.before.add(tensor for tensor in given if storage_key(tensor) not in self._made)
                self.before.add_generators(drawn)
        known = self._graph.count if self._graph is not None else 0
        result = func(*args, **kwargs)
        if self._graph is not None and self._graph.count > known:
            self.recorded[index] = self._graph.count - 1
        with torch._C.DisableTorchFunction():
            self._keep(index, func, result, given, args)
        return result

    def _keep(self, index: int, func: Any, result: Any, given: list[Tensor], args: Any) -> None:
        outputs = list(tensors_in(result))
        before = {storage_key(tensor) for tensor in tensors_in(args)}
        lifted = func.name() == "aten::lift_fresh"
        for output in outputs:
            if (lifted or storage_key(output) not in before) and storage_key(output) is not None:
                self._made[output.untyped_storage()._cdata] = StorageWeakRef(output.untyped_storage())
        if index in self._window:
            with _disable_current_modes():
                self.results[index] = tuple(tensor.clone() for tensor in outputs or given)


class Saved:
    """Copies of storages, and of the state of generators, as they were when they were added."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        """Copy the storages of ``tensors``."""
        self.tensors: dict[int, Tensor] = {}
        """Storage -> a tensor in it."""
        self._copies: dict[int, torch.UntypedStorage] = {}
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        self.add(tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Copy the storages that are not copied yet."""
        for tensor in tensors:
            key = storage_key(tensor)
            if key is not None and key not in self.tensors:
                self.tensors[key] = tensor
                self._copies[key] = tensor.untyped_storage().clone()

    def add_generators(self, generators: Iterable[torch.Generator]) -> None:
        """Keep their states."""
        for generator in generators:
            if all(generator is not known for known, _ in self._generators):
                self._generators.append((generator, generator.get_state()))

    def copy_of(self, tensor: Tensor) -> Tensor:
        """``tensor`` as it was; its storage must have been added."""
        copied = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        copied.set_(
            self._copies[tensor.untyped_storage()._cdata], tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        return copied

    def restore(self) -> None:
        """Put everything back."""
        for key, tensor in self.tensors.items():
            tensor.untyped_storage().copy_(self._copies[key])
        for generator, state in self._generators:
            generator.set_state(state)


def written(op: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensor arguments that the schema of ``op`` says are written."""
    tensors: list[Tensor] = []
    for number, name in written_arguments(op):
        tensors.extend(tensors_in(args[number] if number < len(args) else kwargs.get(name)))
    return tensors


def results_of(call: RecordedCall) -> tuple[Tensor, ...]:
    """Where a replay of ``call`` leaves its results."""
    return call.outputs or tuple(written(call.op, call.args, call.kwargs))
