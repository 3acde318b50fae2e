"""The steps of the gallery in real CUDA graphs: captured, replayed, compared with eager runs; what happened, as data.

    python tests/gpu/gallery_on_cuda.py RESULTS.jsonl STEP...

Each step is imported twice. One copy runs eagerly; the other is warmed up, captured and replayed on static inputs that
are filled with each variant's. Both go through the same history from their import on, so that caches, counters and
weights that are reloaded are the same whenever they are compared. What a step prints is dropped.

A refused capture may leave a process that cannot go on: after each one the stream, the allocator and the generator of
random numbers are put right and tried. Where that fails, or a kernel went wrong, the context is lost: that is written
down and the process ends with code 3. Steps whose inputs die are captured and never replayed on other inputs: they
would read memory that is somebody else's, and an index from there ends the context.

Knows nothing of the tool that it is compared with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from ostinato.graphs.cuda_graph import collection_paused

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gallery.index import Step, steps

BATCH_SIZE = 8
SMALLER = 4
"""Another batch size, to see which dimensions are rows."""
VARIANTS = (0, 1, 2, 3)
WARM_UPS = 2
SEED = 20
LOST = 3
"""Exit code of a process whose context is lost."""

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Relative and absolute, by dtype; of narrower ones 0.02."""

Outputs = list[Tensor]
Work = Callable[[], Any]


class ContextLost(RuntimeError):
    """The process cannot use the device any more."""


class Graphs(Protocol):
    """What steps are captured into."""

    device: str
    runs_at_capture: bool
    """Whether a capture computes too, so that its outputs are those of the first replay."""

    def warm_up(self, work: Work) -> None:
        """Run it where it will be captured."""

    def capture(self, work: Work) -> tuple[Any, Callable[[], None]]:
        """What it returned, and what replays it. Raises what the capture was refused with."""

    def mend(self) -> None:
        """Make the process fit for the next step after an error; ``ContextLost`` if that is impossible."""


class CudaGraphs:
    """The real ones, each in a memory pool of its own."""

    device = "cuda"
    runs_at_capture = False

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._refused: list[Any] = []  # kept: the allocators may hold their addresses
        square = torch.ones(SMALLER, SMALLER, device="cuda")
        self.warm_up(lambda: square @ square)  # cuBLAS gets its workspace on this stream

    def warm_up(self, work: Work) -> None:
        """On the stream of the captures."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.synchronize()

    def capture(self, work: Work) -> tuple[Any, Callable[[], None]]:
        """In the mode that leaves other threads alone."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        with collection_paused(), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = work()
                graph.capture_end()
            except BaseException:
                self._abandon(graph, pool)
                raise

        def replay() -> None:
            graph.replay()
            torch.cuda.synchronize()

        return result, replay

    def _abandon(self, graph: Any, pool: Any) -> None:
        """Leave the capture. If it is invalid torch raises before it lets go of the pool: then that is done here."""
        self._refused.append(graph)
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        with contextlib.suppress(RuntimeError):  # it has let go already
            torch._C._cuda_endAllocateToPool(self._stream.device_index, pool)
            torch._C._cuda_releasePool(self._stream.device_index, pool)
        with contextlib.suppress(RuntimeError):
            graph.reset()

    def mend(self) -> None:
        """A capture that succeeds takes the process's generator out of the one that did not (torch 2.11 leaves it)."""
        gc.collect()
        try:
            torch.cuda.synchronize()
            _, replay = self.capture(lambda: torch.zeros(1, device="cuda"))
            replay()
            torch.rand(1, device="cuda").sum().item()
        except RuntimeError as error:
            raise ContextLost(first_line(error)) from error

    def registers_generators(self) -> bool:
        """Whether torch takes a generator into a capture that was never told of it."""
        generator = torch.Generator(device="cuda")
        try:
            self.capture(lambda: torch.rand(4, generator=generator, device="cuda"))
        except RuntimeError:
            self.mend()
            return False
        return True


@dataclass
class Happened:
    """What became of one step."""

    step: str
    outcome: str = "not run"
    """``raised`` in the eager run, ``refused`` at capture, ``failed`` in a replay, ``replayed``, ``captured`` (and not
    replayed on other inputs), ``lost`` with the context, ``not run``."""
    error: str = ""
    """Class and first line of what was raised."""
    apart: list[float | None] = field(default_factory=list)
    """Largest difference of a replay and the eager run by variant, 0 within the tolerance; None: another shape."""
    cold: list[float | None] | None = None
    """The same of a capture without any warm-up, to the last bit; only of steps that are said to depend on it."""
    cold_error: str = ""
    overwritten: bool | None = None
    """Whether the outputs of one replay hold other values after the next."""
    leak: float | None = None
    """Largest difference of real rows where the padding rows of the inputs are NaN; None: not looked at."""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class Copy:
    """One import of a step."""

    def __init__(self, step: Step, device: str, number: int) -> None:
        self._device = device
        name = f"{step.path.stem}_{number}"
        spec = importlib.util.spec_from_file_location(name, step.path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{step.path} is not a Python file")
        self.module = importlib.util.module_from_spec(spec)
        sys.modules[name] = self.module  # dataclasses look their module up
        torch.manual_seed(SEED)
        with torch.device(device):
            spec.loader.exec_module(self.module)

    def inputs(self, variant: int, batch_size: int = BATCH_SIZE) -> tuple[Any, ...]:
        """Fresh ones."""
        with torch.device(self._device):
            inputs: tuple[Any, ...] = self.module.make_inputs(batch_size, variant)
        return inputs

    def run(self, inputs: Sequence[Any]) -> Any:
        """The step itself: outside of any default device."""
        with torch.no_grad():
            return self.module.step(*inputs)


def look(step: Step, graphs: Graphs) -> Happened:
    """Everything that is asked of ``step``. Never raises what the step or the device raises."""
    began, happened = time.monotonic(), Happened(step.name)
    codes = {code for fault in step.faults for code in fault.codes}
    with contextlib.redirect_stdout(io.StringIO()), _fresh_compiler():
        try:
            _Rehearsal(step, graphs, happened).run(
                replayed="freed-input" not in codes, padded=not codes or "padding-leak" in codes
            )
            if "warmup-dependent" in codes:
                _look_cold(step, graphs, happened)
        except ContextLost as error:
            happened.outcome, happened.error = "lost", str(error)
    happened.seconds = round(time.monotonic() - began, 2)
    return happened


@contextlib.contextmanager
def _fresh_compiler() -> Iterator[None]:
    """What one step compiled does not count against the limits of the next."""
    try:
        yield
    finally:
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()


def _look_cold(step: Step, graphs: Graphs, happened: Happened) -> None:
    cold = Happened(step.name)
    _Rehearsal(step, graphs, cold, warm_ups=0).run(replayed=True, padded=False)
    happened.cold = cold.apart
    happened.cold_error = cold.error


class _Rehearsal:
    """One history of a step: eager first, so that the device has loaded every kernel before the capture."""

    def __init__(self, step: Step, graphs: Graphs, happened: Happened, warm_ups: int = WARM_UPS) -> None:
        self._step, self._graphs, self._happened, self._warm_ups = step, graphs, happened, warm_ups

    def run(self, *, replayed: bool, padded: bool) -> None:
        """``replayed``: on other inputs too; ``padded``: look at padding rows at the end."""
        self._rows = self._rows_of_inputs() if padded else []
        variants = VARIANTS if replayed else VARIANTS[:1]
        with self._errors_as("raised"):
            self._expected = self._eager((*variants, *([variants[-1]] if padded else [])))
            self._replay_all(variants, padded)

    def _rows_of_inputs(self) -> list[bool]:
        """Of each tensor of the inputs: whether its first dimension counts the rows, and it holds floats."""
        copy = Copy(self._step, self._graphs.device, 0)
        pairs = zip(_tensors(copy.inputs(0)), _tensors(copy.inputs(0, SMALLER)), strict=True)
        return [_has_rows(large, small) for large, small in pairs]

    def _eager(self, variants: Sequence[int]) -> list[Outputs]:
        copy = Copy(self._step, self._graphs.device, 1)
        inputs = copy.inputs(0)
        for _ in range(self._warm_ups):
            copy.run(inputs)
        return [_values(copy.run(copy.inputs(variant))) for variant in variants]

    def _replay_all(self, variants: Sequence[int], padded: bool) -> None:
        happened, graphs = self._happened, self._graphs
        copy = Copy(self._step, graphs.device, 2)
        static = copy.inputs(0)
        for _ in range(self._warm_ups):
            graphs.warm_up(lambda: copy.run(static))
        fill(static, copy.inputs(0))
        with self._errors_as("refused"):
            kept, replay = graphs.capture(lambda: copy.run(static))
            happened.outcome = "captured"
            with self._errors_as("failed"):
                self._compare(copy, static, kept, replay, variants)
                if padded and happened.outcome == "replayed":
                    fill(static, copy.inputs(variants[-1]))
                    poison(static, self._rows)
                    replay()
                    happened.leak = apart(_real_rows(self._expected[-1]), _real_rows(_values(kept)))

    def _compare(
        self, copy: Copy, static: Sequence[Any], kept: Any, replay: Callable[[], None], variants: Sequence[int]
    ) -> None:
        happened, before = self._happened, None
        for number, variant in enumerate(variants):
            if number and not fill(static, copy.inputs(variant)):
                happened.error = f"the inputs of variant {variant} have another form"
                return
            if number or not self._graphs.runs_at_capture:
                replay()
            values = _values(kept)
            happened.apart.append(apart(self._expected[number], values, exactly=not self._warm_ups))
            if before is not None:
                happened.overwritten = bool(happened.overwritten) or apart(before, values) != 0
            before = values
        happened.outcome = "replayed" if len(variants) > 1 else "captured"

    @contextlib.contextmanager
    def _errors_as(self, outcome: str) -> Iterator[None]:
        """Note what is raised; then the process is made fit again."""
        try:
            yield
        except ContextLost:
            raise
        except Exception as error:  # whatever a step or CUDA raises is what we came to see
            self._happened.outcome, self._happened.error = outcome, first_line(error)
            error.__traceback__ = None  # its frames hold tensors of the pool
        else:
            return
        self._graphs.mend()


def fill(static: Sequence[Any], fresh: Sequence[Any]) -> bool:
    """Copy the tensors of ``fresh`` into those of ``static``; False if they are not of the same form."""
    (olds, before), (news, after) = tree_flatten(tuple(static)), tree_flatten(tuple(fresh))
    pairs = [(old, new) for old, new in zip(olds, news, strict=False) if isinstance(old, Tensor) and old is not new]
    if before != after or any(not isinstance(new, Tensor) or old.shape != new.shape for old, new in pairs):
        return False
    for old, new in pairs:
        old.copy_(new)
    return True


def poison(static: Sequence[Any], rows: Sequence[bool]) -> None:
    """NaN in the second half of the rows."""
    for tensor, has_rows in zip(_tensors(tuple(static)), rows, strict=True):
        if has_rows:
            tensor[BATCH_SIZE // 2 :].fill_(float("nan"))


def apart(expected: Outputs, found: Outputs, *, exactly: bool = False) -> float | None:
    """The largest difference; 0 where it is within the tolerance of the dtype, None where shapes differ."""
    if [value.shape for value in expected] != [value.shape for value in found]:
        return None
    return max((_difference(a, b, exactly) for a, b in zip(expected, found, strict=True)), default=0.0)


def _difference(a: Tensor, b: Tensor, exactly: bool) -> float:
    if a.numel() == 0:
        return 0.0
    a, b = a.detach().cpu(), b.detach().cpu()
    tolerance = 0.0 if exactly or not a.is_floating_point() else TOLERANCES.get(a.dtype, 2e-2)
    a, b = a.double(), b.double()
    if torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True).all():
        return 0.0
    difference = (a - b).abs()
    return float(difference[~difference.isnan()].max()) if bool((~difference.isnan()).any()) else float("inf")


def _values(result: Any) -> Outputs:
    """Copies of the tensors in what a step returned."""
    return [tensor.detach().clone() for tensor in _tensors(result)]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _real_rows(outputs: Outputs) -> Outputs:
    """The first half of the rows, of those outputs that have rows."""
    return [value[: BATCH_SIZE // 2] for value in outputs if value.dim() and value.shape[0] == BATCH_SIZE]


def _has_rows(large: Tensor, small: Tensor) -> bool:
    if not large.is_floating_point() or large.dim() == 0:
        return False
    return (large.shape[0], small.shape[0]) == (BATCH_SIZE, SMALLER)


def first_line(error: BaseException) -> str:
    """``RuntimeError: …`` in one line, without the advice that CUDA errors carry."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:200]


def in_order(chosen: Sequence[Step]) -> list[Step]:
    """What should capture first, what should be refused next, what pins memory last: it may spoil the allocator."""

    def rank(step: Step) -> tuple[bool, bool]:
        codes = {code for fault in step.faults for code in fault.codes}
        refused = codes & {"device-sync", "data-dependent-shape", "host-to-device", "cpu-tensor", "graph-break", "rng"}
        return "pin_memory" in step.path.read_text(), bool(refused)

    return sorted(chosen, key=rank)


def machine() -> dict[str, Any]:
    """What the results depend on."""
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}


def main(argv: Sequence[str]) -> int:
    """Look at the steps named in ``argv[1:]``; a JSON line in ``argv[0]`` before each and after it."""
    names = set(argv[1:])
    chosen = in_order([step for step in steps("faulty", "clean", "issues") if step.name in names])
    with Path(argv[0]).open("a", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            print(json.dumps(line), file=file, flush=True)

        graphs = CudaGraphs()
        write({"machine": machine()})
        for step in chosen:
            write({"begun": step.name})
            happened = look(step, graphs)
            write({"happened": happened.as_dict()})
            if happened.outcome == "lost":
                return LOST
        write({"machine": {"registers_generators": graphs.registers_generators()}})
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # an interpreter with a broken context may not come to an end
