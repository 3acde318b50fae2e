"""``capture``: what is in the graph of each batch size, saved as an ``OGraph``.

With a GPU the step is captured into real CUDA graphs (``cuda_capture``). Without one it runs on the CPU and is
described op by op: bytes from shapes, times of ATen calls, memory by what is alive. Both give the same file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ostinato.graphs.inspect.capturing.bandwidth import Rates, measured_rates
from ostinato.graphs.inspect.capturing.buffer_names import names_of
from ostinato.graphs.inspect.capturing.ograph import Memory, OGraph, Op, SizeGraph, working
from ostinato.graphs.inspect.capturing.op_record import DIRECT_LAUNCH, StepRun, record_step
from ostinato.graphs.inspect.capturing.op_times import HostClock, StateKeeper, median_seconds, op_seconds
from ostinato.graphs.inspect.environment import environment
from ostinato.graphs.inspect.target import MakeInputs, Step, Target, TargetError, as_target
from ostinato.layers.errors import ConfigError, OstinatoError

BATCH_SIZES = (1, 2, 4, 8)
_OP_LEVEL = (
    "no GPU: kernels, their grids and parameters, and the bytes of instantiated graphs are unknown",
    "seconds are those of ATen calls on this CPU, and say nothing about a GPU's",
)


def capture(
    function: Step, make_inputs: MakeInputs, *, batch_sizes: Sequence[int] = BATCH_SIZES, name: str | None = None
) -> OGraph:
    """Capture ``function(*make_inputs(batch_size))`` at each size; ``TargetError`` if it raises."""
    return capture_target(as_target(function, make_inputs, name), batch_sizes=batch_sizes)


def capture_target(target: Target, *, batch_sizes: Sequence[int] = BATCH_SIZES) -> OGraph:
    """The same of a ``Target``."""
    sizes = sorted(set(batch_sizes))
    if not sizes or sizes[0] < 1:
        raise ConfigError(f"batch sizes {list(batch_sizes)}: expected at least one, each 1 or more")
    on_gpu = torch.cuda.is_available() and _touches_gpu(target, sizes[0])
    rates = measured_rates("cuda" if on_gpu else "cpu")
    with torch.no_grad():
        graphs, notes = _real(target, sizes, rates) if on_gpu else _described(target, sizes, rates)
    measured = {"read_bandwidth": rates.read, "copy_bandwidth": rates.copy, "matrix_rate": rates.matrix}
    return OGraph(target.name, environment() | measured, graphs, (), tuple(dict.fromkeys(notes)))


def with_times(ops: Sequence[Op], seconds: Sequence[float | None], rates: Rates) -> tuple[Op, ...]:
    """``ops`` with their times and their share of the bandwidth."""
    timed = zip(ops, seconds, strict=True)
    return tuple(replace(op, seconds=s, of_bandwidth=_share(op.bytes, s, rates.read)) for op, s in timed)


def opaque_note(ops: Sequence[Op]) -> list[str]:
    """What is one op here and may be many inside."""
    opaque = sorted({op.op for op in ops if not op.op.startswith(("aten.", "prims.")) and op.op != DIRECT_LAUNCH})
    return [f"the inside of the opaque operators {', '.join(opaque)}"] if opaque else []


@contextlib.contextmanager
def blaming(target: Target, batch_size: int) -> Iterator[None]:
    """What the step raises becomes a ``TargetError`` that says so; our own errors pass."""
    try:
        yield
    except OstinatoError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise TargetError(f"{target.name}: batch size {batch_size}: {type(error).__name__}: {reason}") from error


def external_bytes(run: StepRun) -> int:
    """Bytes of the inputs, weights and state that the step's ops touched."""
    used = {name for op in run.ops for name in (*op.inputs, *op.outputs)}
    return sum(b.bytes for name, b in run.buffers.items() if name in used and b.kind not in ("pool", "output"))


def _touches_gpu(target: Target, size: int) -> bool:
    reached = names_of(target.function, target.inputs(size)).tensors.values()
    return any(tensor.is_cuda for tensor, _ in reached)


def _real(target: Target, sizes: Sequence[int], rates: Rates) -> tuple[dict[int, SizeGraph], list[str]]:
    from ostinato.graphs.inspect.capturing.cuda_capture import capture_sizes

    return capture_sizes(target, sizes, rates)


def _described(target: Target, sizes: Sequence[int], rates: Rates) -> tuple[dict[int, SizeGraph], list[str]]:
    notes = list(_OP_LEVEL)
    graphs: dict[int, SizeGraph] = {}
    largest = 0
    for size in reversed(sizes):
        with blaming(target, size):
            graphs[size], run = _describe(target, size, rates, notes)
        graphs[size] = replace(graphs[size], memory=_memory(run, largest))
        largest = max(largest, run.memory.peak)
    return {size: graphs[size] for size in sizes}, notes


def _describe(target: Target, size: int, rates: Rates, notes: list[str]) -> tuple[SizeGraph, StepRun]:
    inputs = target.inputs(size)
    clock = HostClock()

    def step() -> Any:
        return target.function(*inputs)

    with _uncompiled():
        step()  # initialises what is initialised late
    with _uncompiled():
        run = record_step(target.function, inputs)
        state = StateKeeper(run.written)
        eager = median_seconds(step, state, clock)
        seconds = op_seconds(step, [op.op for op in run.ops], state, clock)
    notes += opaque_note(run.ops)
    if seconds is None:
        notes.append(f"batch size {size}: no times of ops, since two runs did not call the same ones")
    ops = run.ops if seconds is None else with_times(run.ops, seconds, rates)
    replay = None if seconds is None else sum(op.seconds or 0.0 for op in working(ops))
    return SizeGraph(size, "op", ops, (), (), run.buffers, Memory(0, 0, None, 0), replay, eager), run


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Within, compiled functions run as they were written. Nothing is compiled before Dynamo is imported: 3 s saved."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _memory(run: StepRun, largest: int) -> Memory:
    """Sizes are captured largest first: a smaller one finds ``largest`` bytes, and keeps its results for itself."""
    kept = run.memory.alive_among(run.outputs)
    own = max(kept, run.memory.peak - largest)
    return Memory(own, run.memory.peak - own, None, external_bytes(run), run.memory.by_line())


def _share(moved: int, seconds: float | None, rate: float) -> float | None:
    return min(1.0, moved / seconds / rate) if moved and seconds else None
