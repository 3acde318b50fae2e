"""One run of a step, op by op: what was called from which line and module, on which buffers, at what cost.

Nothing is kept alive that the step itself lets go of, so a run needs no more memory than the step. Composite operators
are recorded as the operators that they call. What compiled code does inside is not seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode, resolve_name

from ostinato.graphs.inspect.capturing import costs
from ostinato.graphs.inspect.capturing.attribution import NodeWatch
from ostinato.graphs.inspect.capturing.buffer_names import Names, names_of
from ostinato.graphs.inspect.capturing.live_memory import LiveMemory
from ostinato.graphs.inspect.capturing.ograph import Buffer, Op
from ostinato.graphs.inspect.source import Place, users_stack
from ostinato.graphs.inspect.tracing.listening_mode import ListeningMode
from ostinato.graphs.inspect.tracing.reachable import Reachable

DIRECT_LAUNCH = "launched outside of torch's operators"


@dataclass(frozen=True)
class StepRun:
    """What a run did."""

    ops: tuple[Op, ...]
    buffers: dict[str, Buffer]
    memory: LiveMemory
    outputs: tuple[Tensor, ...]
    result: Any
    """What the step returned."""
    written: tuple[Tensor, ...]
    """Inputs, weights and state that it wrote to."""
    created: tuple[tuple[int, ...], ...]
    """Handles of the graph's nodes that each op launched, under a watch."""
    spans: dict[str, tuple[int, int]]
    """Address and bytes of inputs, weights and state."""
    op_spans: tuple[dict[str, tuple[int, int]], ...]
    """The same of all that an op reads or writes: addresses in a pool are used again."""


def record_step(function: Callable[..., Any], args: tuple[Any, ...], watch: NodeWatch | None = None) -> StepRun:
    """Run ``function(*args)`` once and say what it did; ``watch`` also tells which nodes each op launched."""
    names = names_of(function, args)
    costs.formulas()  # imported before anything listens
    recorder = _Recorder(names, watch)
    with recorder.modules.watched(recorder.flush), recorder.api, recorder:
        result = function(*args)
        recorder.flush()
    return recorder.finished(result)


class _Api(TorchFunctionMode):
    """The outermost function of torch that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.name = self.name, self.name or resolve_name(func)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.name = before


class _Modules:
    """The module that is running, by name."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self._stack: list[str] = []

    @property
    def current(self) -> str:
        return self._stack[-1] if self._stack else ""

    @contextlib.contextmanager
    def watched(self, on_change: Callable[[], None]) -> Iterator[None]:
        """Within, know which module runs, and call ``on_change`` before that changes."""

        def enter(module: nn.Module, _: Any) -> None:
            on_change()
            self._stack.append(self._names.get(id(module), type(module).__name__))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            on_change()
            if self._stack:
                self._stack.pop()

        before = module_hooks.register_module_forward_pre_hook(enter)
        after = module_hooks.register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()


class _Recorder(ListeningMode):
    def __init__(self, names: Names, watch: NodeWatch | None) -> None:
        super().__init__()
        self.api, self.modules, self._watch = _Api(), _Modules(names.modules), watch
        self._memory = LiveMemory(tensor for tensor, _ in names.tensors.values())
        self._names: dict[int, str] = {}
        self._buffers: dict[str, Buffer] = {}
        self._external: dict[str, Tensor] = {}
        self._ops: list[Op] = []
        self._created: list[tuple[int, ...]] = []
        self._spans: list[dict[str, tuple[int, int]]] = []
        self._written: set[str] = set()
        for name, (tensor, kind) in names.tensors.items():
            self._add_external(name, tensor, kind)

    def called(self, op: Any, args: Any, kwargs: Any) -> Any:
        self.flush()
        inputs = costs.tensors_in(args, kwargs)
        for tensor in inputs:
            if self._memory.note(tensor)[1]:
                self._add_external(f"unnamed_{len(self._external)}", tensor, "state")
        result = op(*args, **kwargs)
        created = self._watch.new() if self._watch else ()
        stack = users_stack(limit=1)
        place = stack[0] if stack else None
        self._note_results(op, result, place)
        if op._schema.is_mutable:
            self._written.update(self._names_of(costs.written_arguments(op, args, kwargs)))
        touched = {self._name(tensor): _span(tensor) for tensor in [*inputs, *costs.tensors_in(result)]}
        self._append(self._describe(op, args, kwargs, result, place), created, touched)
        return result

    def flush(self) -> None:
        """What has been launched since the last op was not launched by an op."""
        created = self._watch.new() if self._watch else ()
        if created:
            module = self.modules.current
            launch = Op(len(self._ops), DIRECT_LAUNCH, None, module, None, None, None, (), (), "", 0, 0, 0)
            self._append(launch, created, {})

    def finished(self, result: Any) -> StepRun:
        """After the run."""
        outputs = tuple(Reachable.of([result], ["output"]).tensors.values())
        for tensor in outputs:
            name = self._names.get(tensor.untyped_storage()._cdata)
            if name is not None and self._buffers[name].kind == "pool":
                self._buffers[name] = replace(self._buffers[name], kind="output")
        written = tuple(self._external[name] for name in sorted(self._written & self._external.keys()))
        spans = {name: _span(tensor) for name, tensor in self._external.items()}
        rest = tuple(self._created), spans, tuple(self._spans)
        return StepRun(tuple(self._ops), self._buffers, self._memory, outputs, result, written, *rest)

    def _note_results(self, op: Any, result: Any, place: Place | None) -> None:
        for number, tensor in enumerate(costs.tensors_in(result)):
            storage, new = self._memory.note(tensor)
            if new:
                name = f"{costs.base_name(op)}_{len(self._ops)}" + (f".{number}" if number else "")
                self._names[storage] = name
                self._buffers[name] = _buffer(tensor, "pool")
                self._memory.allocated(tensor, (place.file, place.line) if place else (None, None))
        self._memory.after_op()

    def _describe(self, op: Any, args: Any, kwargs: Any, result: Any, place: Place | None) -> Op:
        moved = costs.traffic(op, args, kwargs, result)
        return Op(
            index=len(self._ops),
            op=str(op),
            api=self.api.name,
            module=self.modules.current,
            file=place.file if place else None,
            line=place.line if place else None,
            function=place.function if place else None,
            inputs=self._names_of(costs.tensors_in(args, kwargs)),
            outputs=self._names_of(costs.tensors_in(result)),
            shapes=costs.shapes(args, kwargs, result),
            bytes_read=moved.read,
            bytes_written=moved.written,
            flops=costs.flops(op, args, kwargs, result),
        )

    def _append(self, op: Op, created: tuple[int, ...], spans: dict[str, tuple[int, int]]) -> None:
        self._ops.append(op)
        self._created.append(created)
        self._spans.append(spans if self._watch else {})

    def _names_of(self, tensors: list[Tensor]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._name(tensor) for tensor in tensors))

    def _name(self, tensor: Tensor) -> str:
        return self._names[tensor.untyped_storage()._cdata]

    def _add_external(self, name: str, tensor: Tensor, kind: Any) -> None:
        number, _ = self._memory.note(tensor)
        if number not in self._names:
            self._names[number] = name
            self._external[name] = tensor
            self._buffers[name] = _buffer(tensor, kind)


def _buffer(tensor: Tensor, kind: Any) -> Buffer:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Buffer(kind, tensor.untyped_storage().nbytes(), tuple(tensor.shape), dtype)


def _span(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
