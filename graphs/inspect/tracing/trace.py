"""One dry run as data: which ATen calls a step made, from which line, on which storages, and what was wrong with them.

``record()`` runs nothing by itself: it listens to this thread with two modes (``function_mode``, ``dispatch_mode``)
that share one ``Recording``. No tensor is kept alive by a trace. It does not see inside compiled code or opaque
operators.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ostinato.graphs.inspect.report import Finding
from ostinato.graphs.inspect.source import Place, users_stack
from ostinato.graphs.inspect.tracing.hazards import Hazard
from ostinato.graphs.inspect.tracing.residency import Residency, Where, storage_key


class TensorRef(NamedTuple):
    """A tensor as it was at a call, without the tensor."""

    storage: int
    """Index in ``Trace.storages``; -1 for a tensor without a storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    on_device: bool

    def __repr__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@lru_cache(maxsize=8192)
def name_of(op: torch._ops.OpOverload) -> str:
    """As in ``aten.mm.default``; making it takes longer than many an operator."""
    return str(op)


class Call(NamedTuple):
    """One ATen call."""

    number: int
    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    """As called, with a ``TensorRef`` in the place of each tensor."""
    kwargs: dict[str, Any]
    inputs: tuple[TensorRef, ...]
    outputs: tuple[TensorRef, ...]
    writes: tuple[int, ...]
    """Storages that it changes."""
    stack: tuple[Place, ...]
    """The user's lines that lead to it, innermost first."""
    module: str
    api: str
    """The function that the user called, as in ``torch.Tensor.item``; empty where C code called."""
    region: tuple[str, Place | None] | None
    """The compiled function that it is a part of, by name, and the line that called it."""

    @property
    def name(self) -> str:
        """As in ``aten.mm.default``."""
        return name_of(self.op)

    @property
    def place(self) -> Place | None:
        """The line that made it."""
        return self.stack[0] if self.stack else None


class StorageSeen(NamedTuple):
    """A storage that a run touched."""

    key: int
    """Another storage's, once this one is gone."""
    reference: StorageWeakRef | None
    """None if the run made it and dropped it: a reference would keep a hole in the heap."""
    num_bytes: int
    produced_by: int | None
    """Index of the call that made it; None: it was there before."""

    @property
    def gone(self) -> bool:
        """Whether its memory is free by now."""
        return self.reference is None or self.reference.expired()


@dataclass
class Trace:
    """A finished run."""

    calls: list[Call] = field(default_factory=list)
    storages: list[StorageSeen] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)
    """Operators and kernels whose inside was not seen."""

    @property
    def externals(self) -> dict[int, int]:
        """Storages that were there before: key to the index of the first call that touches them."""
        first: dict[int, int] = {}
        for call in self.calls:
            for ref in call.inputs:
                if ref.storage >= 0 and self.storages[ref.storage].produced_by is None:
                    first.setdefault(self.storages[ref.storage].key, call.number)
        return first


def not_seen_through(traces: Iterable[Trace]) -> list[str]:
    """What ``traces`` did not look into, one sentence each: opaque operators, and compiled functions run as written."""
    known = list(traces)
    opaque = sorted({name for trace in known for name in trace.opaque})
    regions = sorted({call.region[0] for trace in known for call in trace.calls if call.region})
    said = []
    if opaque:
        said.append(f"what is inside of opaque operators: {', '.join(opaque)}")
    if regions:
        said.append(f"what torch.compile makes of compiled regions, run as written: {', '.join(regions)}")
    return said


@dataclass
class Calling:
    """The torch function that is running, for the operators inside of it."""

    name: str = ""
    makes: Where = Where.HOST
    """Where tensors that it makes from nothing lie."""
    from_data: bool = False
    covered: bool = False
    """Whether hazards of its operators are not its own."""


class Recording:
    """A run that is being listened to: what both modes know and write."""

    def __init__(
        self, residency: Residency, device_type: str, modules: Mapping[int, str], is_real: bool = False
    ) -> None:
        """``device_type``: the device that counts as *the* device; ``is_real``: it is there, and tensors on it are.

        ``modules``: names by ``id``.
        """
        self.is_real = is_real
        self.residency = residency
        self.device_type = device_type
        self.trace = Trace()
        self.calling = Calling()
        self.explicit = False
        """Whether a tensor was asked for on the device by its name."""
        self.module_stack: list[str] = []
        self._ends = contextlib.ExitStack()
        self._outside = frozenset(users_stack(limit=100))
        self._module_names = modules
        self._numbers: dict[int, int] = {}

    def where(self, tensor: Tensor) -> Where:
        """Where ``tensor`` lies; really, if there is a device."""
        if tensor.device.type == "cpu" and self.device_type == "cuda" and self.is_real:
            return Where.PINNED if tensor.is_pinned() else Where.HOST
        return self.residency.of(tensor)

    def where_is(self, device: object) -> Where:
        """Where a tensor on ``device`` lies."""
        kind = torch.device(device).type if not isinstance(device, int) else self.device_type  # type: ignore[call-overload]
        on_device = kind == self.device_type
        self.explicit |= on_device
        return Where.DEVICE if on_device else Where.HOST

    def note(self, hazard: Hazard, op: str) -> None:
        """A hazard of what runs now."""
        stack = self.stack()
        at = stack[0].at if stack else None
        finding = Finding.of(hazard.code, hazard.severity, at, hazard.message, op, hazard.evidence, hazard.fix)
        self.trace.findings.append(finding)

    def made_here(self, tensor: Tensor) -> bool:
        """Whether the run itself made the storage of ``tensor``."""
        number = self._numbers.get(storage_key(tensor) or 0)
        return number is not None and self.trace.storages[number].produced_by is not None

    def knows(self, tensor: Tensor) -> bool:
        """Whether the storage was seen in this run."""
        return (storage_key(tensor) or 0) in self._numbers

    def ref(self, tensor: Tensor, made_by: int | None = None) -> TensorRef:
        """``tensor`` as data; a storage that is new to the run gets a number."""
        return self.see(tensor, made_by)[0]

    def see(self, tensor: Tensor, made_by: int | None = None) -> tuple[TensorRef, Where]:
        """``tensor`` as data, and where it lies."""
        key = storage_key(tensor)
        on_cpu = tensor.device.type == "cpu" and not self.is_real
        where = self.residency.of_key(key) if on_cpu else self.where(tensor)
        if key is None:
            return TensorRef(-1, tuple(tensor.shape), (), 0, tensor.dtype, where is Where.DEVICE), where
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.trace.storages)
            storage = tensor.untyped_storage()
            self.trace.storages.append(StorageSeen(key, StorageWeakRef(storage), storage.nbytes(), made_by))
        strides, offset = tensor.stride(), int(tensor.storage_offset())
        return TensorRef(number, tuple(tensor.shape), strides, offset, tensor.dtype, where is Where.DEVICE), where

    def stack(self) -> tuple[Place, ...]:
        """The user's lines that lead here, innermost first, without those that started the recording."""
        places = users_stack()
        while places and places[-1] in self._outside:
            places = places[:-1]
        return places

    def run_as_written(self) -> None:
        """From now on compiled functions run as they were written. Without Dynamo there are none."""
        self._ends.enter_context(torch.compiler.set_stance("force_eager"))

    def end(self) -> None:
        """The run is over, and so are most storages that it made."""
        self._ends.close()
        storages = self.trace.storages
        storages[:] = [s._replace(reference=None) if s.produced_by is not None and s.gone else s for s in storages]
        self.residency.forget_the_dead()

    def enter_module(self, module: Any, _: Any) -> None:
        """A forward pre-hook."""
        self.module_stack.append(self._module_names.get(id(module), type(module).__name__))

    def leave_module(self, *_: Any) -> None:
        """A forward hook."""
        if self.module_stack:
            self.module_stack.pop()


@contextlib.contextmanager
def record(
    residency: Residency | None = None,
    *,
    device_type: str = "cuda",
    modules: Mapping[int, str] | None = None,
    is_real: bool | None = None,
) -> Iterator[Recording]:
    """Listen to what this thread runs within; afterwards ``.trace`` has the calls and the findings.

    ``device_type`` is the device whose capture is imagined: "cuda", also where there is none, or "cpu" if the code
    insists on its tensors being where they are. ``is_real``: tensors are where they say; else the device is imagined
    (by default where there is none). ``modules`` names modules by ``id``. Compiled functions run as they
    were written meanwhile.
    """
    from ostinato.graphs.inspect.tracing.surroundings import watched

    real = torch.cuda.is_available() if is_real is None else is_real
    recording = Recording(residency or Residency(), device_type, modules or {}, real)
    enter = torch.nn.modules.module.register_module_forward_pre_hook(recording.enter_module)
    leave = torch.nn.modules.module.register_module_forward_hook(recording.leave_module, always_call=True)
    try:
        with watched(recording):
            if "torch._dynamo" in sys.modules:
                recording.run_as_written()
            with _modes(recording):
                yield recording
    finally:
        recording.end()
        enter.remove()
        leave.remove()


@contextlib.contextmanager
def listening(recording: Recording) -> Iterator[None]:
    """For code that is not the step, as what makes its inputs: where its tensors lie is seen, what it prints is not."""
    from ostinato.graphs.inspect.tracing.surroundings import with_cuda_imagined

    with with_cuda_imagined(recording), _modes(recording):
        yield


@contextlib.contextmanager
def _modes(recording: Recording) -> Iterator[None]:
    from ostinato.graphs.inspect.tracing.dispatch_mode import DispatchMode
    from ostinato.graphs.inspect.tracing.function_mode import FunctionMode

    with FunctionMode(recording), DispatchMode(recording):
        yield
