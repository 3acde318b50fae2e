"""The way that a run took, without what depends on how many rows it had: the same way at two batch sizes says the same.

Shapes, strides and integers (sizes, most of them) are left out; operators, lines, modules, storages, other arguments
and hazards are not.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ostinato.graphs.inspect.tracing.trace import Call, TensorRef, Trace

Path = tuple[Hashable, ...]


def path_of(trace: Trace) -> Path:
    """Equal for two runs if both made the same calls, from the same lines, on corresponding tensors."""
    hazards = tuple((f.code, f.severity, f.file, f.line, f.op) for f in trace.findings)
    external = tuple(storage.produced_by for storage in trace.storages)
    return (hazards, external, frozenset(trace.opaque), *map(_of_call, trace.calls))


def _of_call(call: Call) -> Hashable:
    arguments = tuple(map(_of_argument, call.args)), tuple((n, _of_argument(v)) for n, v in call.kwargs.items())
    outputs = tuple(map(_of_argument, call.outputs))
    return call.op, call.stack, call.module, call.api, call.region, call.writes, arguments, outputs


def _of_argument(value: Any) -> Hashable:
    if isinstance(value, TensorRef):
        return value.storage, len(value.shape), value.dtype, value.on_device
    if isinstance(value, list | tuple):
        return (int,) if value and all(type(part) is int for part in value) else tuple(map(_of_argument, value))
    if type(value) is int:
        return int
    return repr(value)
