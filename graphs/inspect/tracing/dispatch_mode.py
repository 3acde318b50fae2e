"""Listens to ATen calls: records each, keeps account of where new tensors lie, and asks ``hazards`` about it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ostinato.graphs.inspect.source import compiled_region
from ostinato.graphs.inspect.tracing import hazards
from ostinato.graphs.inspect.tracing.arguments import tensors_in, with_tensors_as, written_arguments
from ostinato.graphs.inspect.tracing.listening_mode import ListeningMode
from ostinato.graphs.inspect.tracing.residency import Where
from ostinato.graphs.inspect.tracing.trace import Call, Recording, TensorRef, name_of

MOST_VALUES = 1024
"""Of a tensor made from host data, to be compared."""

_LIFT_FRESH = torch.ops.aten.lift_fresh.default
_COPY = torch.ops.aten.copy_.default
_SEEN_THROUGH = ("aten", "prims", "prim")


class DispatchMode(ListeningMode):
    """Writes into a ``Recording``."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Look, call, record."""
        with torch._C.DisableTorchFunction():
            recording = self._recording
            fresh = func is _LIFT_FRESH
            given = [] if fresh else list(tensors_in((args, kwargs) if kwargs else args))
            seen = [recording.see(tensor) for tensor in given]
            refs, places = [ref for ref, _ in seen], [(t, where) for t, (_, where) in zip(given, seen, strict=True)]
            self._look(func, args, kwargs, places)
            signature = self._signature(args, kwargs, refs, fresh)
            result = func(*args, **kwargs)
            self._record(func, signature, refs, places, result, fresh)
        return result

    def called_higher_order(self, op: Any, args: Any, kwargs: Any) -> Any:
        """Its name; and a condition is read by the host, where no graph is compiled around it."""
        recording = self._recording
        recording.trace.opaque.add(str(op))
        if str(op) in ("cond", "while_loop"):
            recording.note(hazards.condition(str(op)), f"torch.{op}")
        return op(*args, **kwargs)

    def _signature(self, args: Any, kwargs: Any, refs: list[TensorRef], fresh: bool) -> Any:
        """The call without its tensors; of data from the host, the values, since a graph freezes them."""
        if fresh:
            data: Tensor = args[0]
            return ((data.tolist() if data.numel() <= MOST_VALUES else f"{data.numel()} values",), {})
        following = iter(refs)
        return with_tensors_as(lambda _: next(following), (args, kwargs))

    def _look(self, op: Any, args: Any, kwargs: Any, places: list[tuple[Tensor, Where]]) -> None:
        """Note the hazards of the call."""
        recording = self._recording
        calling = recording.calling
        if calling.covered:
            return
        called = hazards.short(calling.name) or name_of(op)
        if op is _COPY:
            (target, to), (source, lies) = places[0], places[-1]
            if target is not source and source.dim() + target.dim() > 0:
                blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
                name = calling.name or "copy_"
                moved = hazards.moved(name, lies, to, not blocking, recording.made_here(source), source)
                if moved is not None and not (to is Where.PINNED and not blocking):
                    recording.note(moved, called)
            return
        for hazard in hazards.of_operator(op, args, kwargs, places, calling.name, calling.makes):
            recording.note(hazard, called)

    def _record(
        self,
        op: Any,
        signature: Any,
        refs: list[TensorRef],
        places: list[tuple[Tensor, Where]],
        result: Any,
        fresh: bool,
    ) -> None:
        recording = self._recording
        args, kwargs = signature
        index = len(recording.trace.calls)
        outputs = list(tensors_in(result))
        for output in outputs:
            if fresh or not (recording.knows(output) or recording.residency.marked(output)):
                self._place(output, places, fresh)
        recording.trace.calls.append(
            Call(
                index,
                op,
                args,
                kwargs,
                tuple(refs),
                tuple(recording.ref(output, index) for output in outputs),
                _writes(op, args, kwargs),
                recording.stack(),
                recording.module_stack[-1] if recording.module_stack else "",
                recording.calling.name,
                compiled_region(),
            )
        )
        if op.namespace not in _SEEN_THROUGH:
            recording.trace.opaque.add(name_of(op))

    def _place(self, output: Tensor, places: list[tuple[Tensor, Where]], fresh: bool) -> None:
        """Say where a new tensor lies."""
        recording = self._recording
        calling = recording.calling
        if fresh and not calling.covered:
            asked = calling.from_data and calling.makes is Where.DEVICE
            if asked or (recording.is_real and recording.where(output) is Where.DEVICE):  # a list as an index, too
                recording.note(hazards.made_from_host_data(calling.name, output), hazards.short(calling.name))
        if recording.is_real:
            return
        if fresh:
            where = calling.makes if calling.from_data else Where.HOST
        else:
            on_device = any(where is Where.DEVICE for _, where in places) and not calling.covered
            where = Where.DEVICE if on_device else calling.makes
        recording.residency.mark(output, where)


def _writes(op: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Storages of the arguments that the schema says are written."""
    written: list[int] = []
    for number, name in written_arguments(op):
        value = args[number] if number < len(args) else kwargs.get(name)
        parts = value if isinstance(value, list) else [value]
        written.extend(ref.storage for ref in parts if isinstance(ref, TensorRef))
    return tuple(written)
