"""What of a single call a capture would refuse or freeze: a table of PyTorch's own behaviour on CUDA, call by call.

Two views of a call: the function that the user wrote (``Tensor.tolist``, ``torch.tensor``) and the ATen operators it
became. A hazard that the function explains covers those of its operators. Where a CPU does what CUDA does not (one_hot
checks its classes) or the other way round, CUDA counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ostinato.graphs.inspect.report import Severity
from ostinato.graphs.inspect.tracing.residency import Where


@dataclass(frozen=True)
class Hazard:
    """What is wrong with one call; where it was made is the trace's to say."""

    code: str
    severity: Severity
    message: str
    fix: str = ""
    evidence: str = ""


_LATER = "read it after the replay, outside of the step"
_SYNCS: dict[str, tuple[str, str]] = {
    "torch.Tensor.tolist": ("brings every element to the host", _LATER),
    "torch.Tensor.numpy": ("needs the tensor in host memory", _LATER),
    "torch.Tensor.__array__": ("needs the tensor in host memory", _LATER),
    "torch.Tensor.__repr__": ("prints values, which the host has to wait for", "print after the replay"),
    "torch.Tensor.__str__": ("prints values, which the host has to wait for", "print after the replay"),
    "torch.Tensor.__format__": ("formats a value, which the host has to wait for", "format it after the replay"),
    "torch.Tensor.__reduce_ex__": ("pickles the values, which the host has to wait for", _LATER),
    "torch.Tensor.__contains__": (
        "looks for a value, and the host waits for the answer",
        "compare with (x == v).any()",
    ),
    "torch.equal": ("compares on the device and waits for the answer", "keep (a == b).all() as a tensor"),
    "torch.Tensor.equal": ("compares on the device and waits for the answer", "keep (a == b).all() as a tensor"),
    "torch.allclose": ("compares on the device and waits for the answer", "keep torch.isclose(a, b).all() as a tensor"),
    "torch.Tensor.allclose": ("compares on the device and waits for the answer", "keep torch.isclose(...).all()"),
}
"""Functions that make the host wait, by name: what they do, what to do instead."""

_SCALAR_FIXES = {
    "torch.Tensor.__bool__": "choose on the device with torch.where, or decide before the step",
    "torch.Tensor.item": "keep it as a tensor: operations take 0-dim tensors; or compute it on the host beforehand",
    "torch.Tensor.__int__": "keep it as a tensor, or compute the number on the host before the step",
    "torch.Tensor.__index__": "use a constant bound and mask, or index_select with the tensor",
    "torch.Tensor.__getitem__": "slice to a constant bound and mask, or use index_select with a 1-dim index tensor",
    "torch.Tensor.__setitem__": "use index_copy_, scatter_ or torch.where with the index as a tensor",
}

_SHAPE_FIXES = {
    "nonzero": "use torch.where(condition, a, b) or torch.nonzero_static(size=)",
    "index": "use torch.where(mask, x, 0), or index_select with indices of a fixed number",
    "index_put_": "use torch.where(mask, values, x) or masked_fill_",
    "masked_select": "use torch.where(mask, x, 0)",
    "repeat_interleave": "give output_size=, computed on the host before the step",
    "one_hot": "give num_classes=",
    "bincount": "use scatter_add_ into a tensor of fixed size",
}
_DYNAMIC = torch.Tag.dynamic_output_shape
_RANDOM = torch.Tag.nondeterministic_seeded

_CHECKED_LINALG = (
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "linalg_eig",
    "linalg_eigvals",
    "linalg_lstsq",
)


def of_function(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], where: Callable[[Tensor], Where]
) -> Hazard | None:
    """The hazard of calling ``name`` (as in ``torch.Tensor.item``), if the name alone tells it."""
    if name in _SYNCS and any(isinstance(a, Tensor) and where(a) is Where.DEVICE for a in args):
        does, fix = _SYNCS[name]
        return Hazard("device-sync", "error", f"{short(name)} {does}", fix, _shapes(args))
    if name == "torch.nn.functional.one_hot" and _classes(args, kwargs) < 0:
        message = "one_hot without num_classes counts the classes, and the host waits for the number"
        return Hazard("data-dependent-shape", "error", message, _SHAPE_FIXES["one_hot"], _shapes(args))
    return None


def covers_its_operators(name: str) -> bool:
    """Whether the operators inside are not looked at: the function is the cause, or they are a CPU's own checks."""
    return name in _SYNCS or name == "torch.nn.functional.one_hot"


def moved(
    name: str, source: Where, target: Where, non_blocking: bool, made_here: bool, tensor: Tensor
) -> Hazard | None:
    """The hazard of bringing ``tensor`` from ``source`` to ``target``; ``made_here``: by the step itself."""
    what = _describe(tensor)
    if source is Where.DEVICE and target is not Where.DEVICE:
        message = f"{short(name)} brings {what} to the host, which waits for it"
        return Hazard("device-sync", "error", message, "copy_ it into pinned memory after the replay")
    if source is Where.DEVICE or target is not Where.DEVICE:
        return None
    if source is Where.HOST:
        message = f"{short(name)} copies {what} from pageable host memory to the device"
        return Hazard("host-to-device", "error", message)
    if made_here:
        message = f"{short(name)} copies {what} from pinned memory that is freed after the step; replays read it again"
        return Hazard("host-to-device", "error", message, "keep one pinned tensor and fill it before each replay")
    wait = "" if non_blocking else "; without non_blocking=True the host waits"
    message = f"{short(name)} copies {what} from one fixed pinned address at each replay{wait}"
    return Hazard("host-to-device", "info" if non_blocking else "error", message, "copy with non_blocking=True")


def made_from_host_data(name: str, tensor: Tensor) -> Hazard:
    """``torch.tensor([...], device="cuda")`` and its like."""
    message = f"{short(name)} makes {_describe(tensor)} from Python values: a copy from pageable host memory"
    fix = "make it once outside, and fill it with copy_ before the replay; torch.full makes a constant on the device"
    return Hazard("host-to-device", "error", message, fix)


def condition(name: str) -> Hazard:
    """Control flow on tensors, called outside of a compiled function."""
    message = f"torch.{name} reads its condition on the host, which waits for it"
    return Hazard("device-sync", "error", message, "compute both sides and choose with torch.where")


def of_operator(
    op: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    places: Sequence[tuple[Tensor, Where]],
    api: str,
    makes: Where,
) -> list[Hazard]:
    """Hazards of one ATen call on tensors that lie at ``places``.

    ``api`` is the function that it is a part of; ``makes``: where that makes tensors from nothing.
    """
    on_device = any(where is Where.DEVICE for _, where in places)
    base, _, random = _traits(op)
    found: list[Hazard | None] = []
    if on_device:
        found.append(_sync(base, args, api) if base != "_grouped_mm" else _grouped_mm(args))
        found.append(_dynamic(op, base, args, kwargs, places, api))
        found.extend(_mixed(op, base, places, api))
    if random:
        found.append(_random(op, base, args, kwargs, on_device or (not places and makes is Where.DEVICE)))
    return [hazard for hazard in found if hazard is not None]


@lru_cache(maxsize=8192)
def _traits(op: torch._ops.OpOverload) -> tuple[str, bool, bool]:
    """Its name without namespace and overload; whether the shape of its result depends on data; whether it draws."""
    return op._schema.name.partition("::")[2], _DYNAMIC in op.tags, _RANDOM in op.tags


def _sync(base: str, args: Sequence[Any], api: str) -> Hazard | None:
    if base == "_local_scalar_dense":
        called = short(api) if api else "Tensor.item"
        fix = _SCALAR_FIXES.get(api, _SCALAR_FIXES["torch.Tensor.item"])
        return Hazard(
            "device-sync", "error", f"{called} needs a value on the host, which waits for it", fix, _shapes(args)
        )
    if base in _CHECKED_LINALG:
        fix = "use the form that does not check on the host (linalg.cholesky_ex, inv_ex, solve_ex)"
        return Hazard("device-sync", "error", f"{short(api) or base} checks its result on the host", fix, _shapes(args))
    return None


def _grouped_mm(args: Sequence[Any]) -> Hazard | None:
    """CUDA has a kernel for bfloat16 on compute capability 9 and 10; else it loops over offsets read on the host.

    See ``_grouped_mm_cuda`` in ATen's GroupedBlas.cpp. Two three-dimensional operands have no offsets.
    """
    a, b = args[:2]
    if a.dim() == b.dim() == 3:
        return None
    fix = "bfloat16 on compute capability 9 or 10; elsewhere gather the weights of each row and use torch.bmm"
    if a.dtype is b.dtype is torch.bfloat16:
        message = "grouped_mm reads its offsets on the host, and waits, on GPUs other than compute capability 9 and 10"
        return Hazard("device-sync", "info", message, fix, _shapes(args))
    kind = str(a.dtype).removeprefix("torch.")
    message = f"grouped_mm in {kind} reads its offsets on the host, and waits for them: its kernel is for bfloat16"
    return Hazard("device-sync", "error", message, fix, _shapes(args))


def _dynamic(
    op: torch._ops.OpOverload,
    base: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    places: Sequence[tuple[Tensor, Where]],
    api: str,
) -> Hazard | None:
    masks = [t for t, _ in places[1:] if t.dtype in (torch.bool, torch.uint8)]
    if base in ("index_put_", "index_put", "_index_put_impl_"):
        value, lies = places[-1]
        filled = value.numel() == 1 and lies is not Where.DEVICE  # becomes masked_fill_
        if not masks or filled:
            return None
        return _shape_hazard("index_put_", f"{short(api)} writes at a mask: it looks for the True elements", args)
    if base == "index":
        return _shape_hazard(base, f"{short(api)} selects by a mask of {list(masks[0].shape)}", args) if masks else None
    if base == "repeat_interleave" and _argument(op, args, kwargs, "output_size") is not None:
        return None
    if _traits(op)[1]:
        return _shape_hazard(base, f"the size of what {short(api) or base} returns depends on values", args)
    return None


def _shape_hazard(base: str, message: str, args: Sequence[Any]) -> Hazard:
    return Hazard("data-dependent-shape", "error", message, _SHAPE_FIXES.get(base, ""), _shapes(args))


def _mixed(op: torch._ops.OpOverload, base: str, places: Sequence[tuple[Tensor, Where]], api: str) -> list[Hazard]:
    """Hazards of operands on both sides."""
    on_host = [(number, tensor) for number, (tensor, where) in enumerate(places) if where is not Where.DEVICE]
    if base == "copy_" or not on_host:
        return []  # a copy is looked at as a move
    called = short(api) or base
    if base in ("index", "index_put_", "index_put", "_index_put_impl_") and on_host[0][0] > 0:
        indices = [tensor for number, tensor in on_host if tensor.dtype not in (torch.float32,) and tensor.dim() > 0]
        if not indices:
            return []
        message = f"{called} copies its index {_describe(indices[0])} from the host to the device"
        return [Hazard("host-to-device", "error", message, "keep the index as a tensor on the device")]
    scalars = [tensor for _, tensor in on_host if tensor.dim() == 0]
    if len(scalars) == len(on_host) and (
        torch.Tag.pointwise in op.tags or base.startswith(("fill", "masked_fill", "where"))
    ):
        if api == "torch.Tensor.__setitem__":
            return []  # a Python number, which is a number in the kernel's arguments
        message = f"{called} takes {_describe(scalars[0])} from the CPU: a replay keeps the value of the capture"
        return [Hazard("cpu-tensor", "info", message, evidence=f"value {scalars[0].item()}")]
    message = f"{called} mixes {_describe(on_host[0][1])} on the CPU with tensors on the device"
    return [Hazard("cpu-tensor", "error", message)]


def _random(
    op: torch._ops.OpOverload, base: str, args: Sequence[Any], kwargs: dict[str, Any], on_device: bool
) -> Hazard | None:
    if _argument(op, args, kwargs, "dropout_p") == 0:
        return None
    if not on_device:
        message = f"{base} draws on the host, once, at capture"
        return Hazard("rng", "error", message)
    if _argument(op, args, kwargs, "generator") is not None:
        message = f"{base} draws from a generator of its own, which the graph has to know"
        return Hazard("rng", "error", message, "graph.register_generator_state(generator) before the capture")
    message = f"{base} draws from the process's generator: no request has a seed, and all that draws changes it"
    return Hazard("rng", "warning", message)


def _argument(op: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], name: str) -> Any:
    for number, argument in enumerate(op._schema.arguments):
        if argument.name == name:
            return args[number] if number < len(args) else kwargs.get(name, argument.default_value)
    return None


def _classes(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    return int(args[1] if len(args) > 1 else kwargs.get("num_classes", -1))


def short(name: str) -> str:
    """``torch.Tensor.item`` as people say it: ``Tensor.item``."""
    return name.removeprefix("torch.nn.").removeprefix("torch.") if name.startswith("torch.Tensor") else name


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _shapes(args: Sequence[Any]) -> str:
    return ", ".join(_describe(a) for a in args if isinstance(a, Tensor))
