"""What a server waits for before its first token: tracing, compilation, kernels, capture; which cache missed, and why.

    print(startup_text(startup(step, make_inputs, batch_sizes=(1, 8))))

Compiles a copy of the function with Inductor, from whatever is in its cache on disk, with compilers in threads instead
of processes. On a GPU the compiled function is captured; elsewhere the uncompiled one, emulated.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ostinato.graphs.compile_scope import compile_scope
from ostinato.graphs.graph_set import GraphSet
from ostinato.graphs.inspect.dynamo.dynamo_log import DynamoLog, listening
from ostinato.graphs.inspect.dynamo.dynamo_state import hosts_state_kept
from ostinato.graphs.inspect.dynamo.subject import Subject, subject_of
from ostinato.graphs.inspect.dynamo.walk import describe
from ostinato.graphs.inspect.dynamo.waterfall import Phase, phases_of
from ostinato.graphs.inspect.environment import environment
from ostinato.graphs.inspect.report import SCHEMA
from ostinato.graphs.inspect.target import MakeInputs, Step, Target, TargetError, as_target
from ostinato.graphs.inspect.time_limit import time_limit
from ostinato.graphs.streams import stream_of
from ostinato.layers.errors import CaptureError

KIND = "ostinato-startup"
_CALL_LIMIT = 1800.0
"""Seconds that one compilation may take."""
_WIDTH = 32


def startup(
    fn: Step, make_inputs: MakeInputs, *, batch_sizes: Sequence[int] = (1,), name: str | None = None
) -> dict[str, Any]:
    """The waterfall as plain data (``docs/formats.md``), in seconds; ``TargetError`` if it cannot be compiled."""
    return startup_target(as_target(fn, make_inputs, name), batch_sizes=batch_sizes)


def startup_target(target: Target, *, batch_sizes: Sequence[int] = (1,)) -> dict[str, Any]:
    """The same for a target in hand."""
    subject = subject_of(target.function)
    began = time.time()
    with hosts_state_kept(), listening() as log, _caches_of_torch(), compile_scope():
        compiled = torch.compile(subject.function, dynamic=subject.dynamic)
        phases = [
            (size, phase)
            for index, size in enumerate(batch_sizes)
            for phase in _start(target, subject, compiled, log, index, size)
        ]
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "target": target.name,
        "environment": environment(),
        "phases": [_as_dict(size, phase, began) for size, phase in phases],
        "seconds": round(sum(phase.seconds for _, phase in phases), 6),
    }


def startup_text(result: dict[str, Any]) -> str:
    """The waterfall for a terminal: a bar for each phase, and below the first columns, why."""
    phases = result["phases"]
    end = max((phase["start"] + phase["seconds"] for phase in phases), default=0.0) or 1.0
    lines = [f"{result['target']}: {result['seconds']:.2f} s to start"]
    for phase in phases:
        first = round(phase["start"] / end * _WIDTH)
        bar = "█" * max(1, round(phase["seconds"] / end * _WIDTH)) if phase["seconds"] else ""
        size, cache = f"batch {phase['batch_size']}", phase["cache"] or ""
        row = f"  {size:<10}{phase['name']:<9}{phase['seconds']:>9.3f} s  {cache:<5}"
        lines += [f"{row}{' ' * min(first, _WIDTH - 1)}{bar[: _WIDTH - first] or '▏'}", f"{'':12}{phase['why']}"]
    return "\n".join(lines)


def _start(
    target: Target, subject: Subject, compiled: Callable[..., Any], log: DynamoLog, call: int, size: int
) -> list[Phase]:
    """Compile for one batch size, then capture."""
    inputs = target.inputs(size)
    log.call = call
    began = time.time()
    try:
        with time_limit(_CALL_LIMIT, f"{target.name}: compiling batch size {size}"):
            compiled(*inputs)
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(f"{target.name}: compiling batch size {size} {describe(error)}") from error
    phases = phases_of(log, call, began, time.time())
    return [*phases, _capture(target, subject, compiled, size)]


def _capture(target: Target, subject: Subject, compiled: Callable[..., Any], size: int) -> Phase:
    """Warm up and capture one graph, and free it."""
    inputs = target.inputs(size)
    device = _device(inputs)
    on_gpu = device.type == "cuda"
    run = compiled if on_gpu else subject.original
    stream = stream_of(device, emulate=not on_gpu)
    graphs: GraphSet[str] = GraphSet((size,), stream)
    why = f"{stream.warm_ups} runs, then the capture" if on_gpu else "emulated: the uncompiled function is recorded"
    began = time.time()
    try:
        graphs.capture_all(("step",), lambda *_: lambda: run(*inputs))
    except CaptureError as error:
        why = f"refused: {error}"
    finally:
        seconds = time.time() - began
        graphs.close()
        stream.close()
    return Phase("capture", began, seconds, None, why)


def _device(inputs: tuple[Any, ...]) -> torch.device:
    devices = [leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return next((device for device in devices if device.type == "cuda"), torch.device("cpu"))


@contextlib.contextmanager
def _caches_of_torch() -> Iterator[None]:
    """The folder that a program of the user's would use, rather than ours; the variable is as before afterwards."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ.setdefault(name, default_cache_dir())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def _as_dict(size: int, phase: Phase, began: float) -> dict[str, Any]:
    return {
        "name": phase.name,
        "batch_size": size,
        "start": round(max(0.0, phase.start - began), 6),
        "seconds": round(phase.seconds, 6),
        "cache": phase.cache,
        "why": phase.why,
    }
