"""Listens to the torch functions that user code calls, before they become operators.

Sees what is lost later: that ``x.cpu()`` was asked for though nothing moves on a CPU, which device a tensor was made
on, that a value was printed. Answers ``x.device`` with the device that is imagined; takes requests for it to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from ostinato.graphs.inspect.tracing import hazards
from ostinato.graphs.inspect.tracing.arguments import tensors_in
from ostinato.graphs.inspect.tracing.residency import Where
from ostinato.graphs.inspect.tracing.trace import Calling, Recording

_FROM_DATA = {"torch.tensor", "torch.as_tensor", "torch.asarray", "torch.Tensor.new_tensor", "torch.scalar_tensor"}
_MOVES = {"torch.Tensor.to", "torch.Tensor.cpu", "torch.Tensor.cuda", "torch.Tensor.type", "torch.Tensor.type_as"}
_IN_FLOAT_ON_CPU = {"torch.histc", "torch.Tensor.histc"}
"""What CUDA computes for integers and a CPU for floating point only."""


_NAMES: dict[Any, str] = {}
"""``resolve_name`` of each function met: it is slow."""


def _name(func: Any) -> str:
    return _NAMES.setdefault(func, resolve_name(func) or getattr(func, "__name__", ""))


class FunctionMode(TorchFunctionMode):
    """Writes into a ``Recording``."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _NAMES.get(func) or _name(func)
        kwargs = dict(kwargs or {})
        answer = _ANSWERS.get(name)
        if answer is not None and isinstance(args[0], Tensor):
            return answer(self._recording, args[0])
        if name == "torch.Tensor.pin_memory":
            return self._pinned(args[0])
        if name in _MOVES:
            return self._move(name, func, args, kwargs)
        return self._call(name, func, args, kwargs)

    def _call(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        recording = self._recording
        hazard = hazards.of_function(name, args, kwargs, recording.where)
        if hazard is not None:
            recording.note(hazard, hazards.short(name))
        before = recording.calling
        recording.calling = Calling(name, self._makes(args, kwargs), name in _FROM_DATA)
        recording.calling.covered = before.covered or hazards.covers_its_operators(name)
        try:
            return self._as_on_device(name, func, args)(*args, **kwargs)
        finally:
            recording.calling = before

    def _as_on_device(self, name: str, func: Any, args: Any) -> Any:
        """``func``, or what takes its place on a CPU that stands for the device and has no such kernel."""
        if self._recording.is_real or name not in _IN_FLOAT_ON_CPU or not args or args[0].is_floating_point():
            return func
        return lambda tensor, *rest, **options: func(tensor.float(), *rest, **options).to(tensor.dtype)

    def _makes(self, args: Any, kwargs: dict[str, Any]) -> Where:
        """Where the call makes tensors; a request for the device, or for pinned memory, is taken to the CPU."""
        recording = self._recording
        pinned = bool(kwargs.get("pin_memory")) and not recording.is_real
        if pinned:
            kwargs["pin_memory"] = False
        device = kwargs.get("device")
        if device is None:
            tensors = list(tensors_in(args))
            if any(recording.where(tensor) is Where.DEVICE for tensor in tensors):
                return Where.DEVICE
            if tensors or not _default_device():
                return Where.PINNED if pinned else Where.HOST
            device = _default_device()
        if str(device).partition(":")[0] == "meta":
            return Where.DEVICE
        where = recording.where_is(device)
        if not recording.is_real:
            kwargs["device"] = torch.device("cpu")
        return Where.PINNED if pinned and where is Where.HOST else where

    def _move(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """``.to``, ``.cpu``, ``.cuda``: on a CPU nothing moves, so what counts as elsewhere gets memory of its own."""
        recording = self._recording
        tensor: Tensor = args[0]
        source, target = recording.where(tensor), self._target(name, args, kwargs)
        if target is None or target is source or (source is Where.PINNED and target is Where.HOST):
            return self._call(name, *self._on_cpu(name, func, args, kwargs))
        blocking = not (kwargs.get("non_blocking") or (len(args) > 1 and args[-1] is True))
        hazard = hazards.moved(name, source, target, not blocking, recording.made_here(tensor), tensor)
        if hazard is not None:
            recording.note(hazard, hazards.short(name))
        before, recording.calling = recording.calling, Calling(name, target, covered=True)
        try:
            func, args, kwargs = self._on_cpu(name, func, args, kwargs)
            moved: Tensor = func(*args, **kwargs)
            if not recording.is_real:
                moved = moved.clone() if moved.data_ptr() == tensor.data_ptr() else moved
                recording.residency.mark(moved, target)
            return moved
        finally:
            recording.calling = before

    def _target(self, name: str, args: Any, kwargs: dict[str, Any]) -> Where | None:
        """Where the result has to lie; None where only the dtype changes, or for the meta device."""
        if name == "torch.Tensor.cpu":
            return Where.HOST
        if name == "torch.Tensor.cuda":
            return Where.DEVICE
        if name == "torch.Tensor.type":
            return _of_type(args[1] if len(args) > 1 else kwargs.get("dtype"))
        wanted = kwargs.get("device")
        for argument in args[1:]:
            if isinstance(argument, Tensor):
                return self._recording.where(argument)
            if isinstance(argument, str | torch.device) or type(argument) is int:
                wanted = argument
        if wanted is None or str(wanted).startswith("meta"):
            return None
        return self._recording.where_is(wanted)

    def _on_cpu(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Callable[..., Any], Any, Any]:
        """The same call where there is no device."""
        if self._recording.is_real:
            return func, args, kwargs
        if name == "torch.Tensor.cuda":
            return torch.Tensor.cpu, args[:1], {}
        if name == "torch.Tensor.type":
            return func, tuple(_type_on_cpu(each) for each in args), {n: _type_on_cpu(v) for n, v in kwargs.items()}
        cpu = torch.device("cpu")
        args = (args[0], *(cpu if isinstance(a, str | torch.device) and str(a) != "meta" else a for a in args[1:]))
        if kwargs.get("device") is not None and str(kwargs["device"]) != "meta":
            kwargs = kwargs | {"device": cpu}
        return func, args, kwargs

    def _pinned(self, tensor: Tensor) -> Tensor:
        if self._recording.is_real:
            return tensor.pin_memory()
        copy = tensor.clone()
        self._recording.residency.mark(copy, Where.PINNED)
        return copy


def _of_type(wanted: object) -> Where | None:
    """Where ``Tensor.type(wanted)`` takes a tensor; None for a dtype, and where only the type is asked for."""
    if not isinstance(wanted, str | type):
        return None
    return Where.DEVICE if "cuda" in str(wanted) else Where.HOST


def _type_on_cpu(wanted: Any) -> Any:
    """``torch.cuda.FloatTensor`` as the type of a tensor on the CPU."""
    if isinstance(wanted, str) and wanted.startswith("torch.cuda."):
        return wanted.replace("torch.cuda.", "torch.")
    return getattr(torch, wanted.__name__) if isinstance(wanted, type) and "cuda" in str(wanted) else wanted


def _default_device() -> torch.device | None:
    """The device that ``torch.set_default_device`` asked for."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return context.device if context is not None else None


def _device(recording: Recording, tensor: Tensor) -> torch.device:
    if tensor.device.type != "cpu" or recording.where(tensor) is not Where.DEVICE:
        return tensor.device
    return torch.device(recording.device_type, 0) if recording.device_type != "cpu" else tensor.device


_ANSWERS: dict[str, Callable[[Recording, Tensor], Any]] = {
    "torch.Tensor.device.__get__": _device,
    "torch.Tensor.is_cuda.__get__": lambda recording, tensor: _device(recording, tensor).type == "cuda",
    "torch.Tensor.is_cpu.__get__": lambda recording, tensor: _device(recording, tensor).type == "cpu",
    "torch.Tensor.get_device": lambda recording, tensor: 0 if _device(recording, tensor).type == "cuda" else -1,
    "torch.Tensor.is_pinned": lambda recording, tensor: recording.where(tensor) is Where.PINNED,
}
"""What a tensor says of itself."""
