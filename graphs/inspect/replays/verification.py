"""Does a captured graph compute what the step computes? Layer by layer, then operation by operation, without edits.

    noise      -> eager twice from one state, seeds and caches put back: what is closer than that counts as equal
    modules    -> forward hooks copy what each module gives into buffers that the capture takes in
    operations -> inside of the first module that differs, captured again with a copy after each operation

On a GPU the graph is a CUDA graph; elsewhere the emulated one takes its place, and the report says so.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ostinato.graphs.inspect.dry_runs import lifetimes
from ostinato.graphs.inspect.environment import environment
from ostinato.graphs.inspect.garbage import only_new_garbage
from ostinato.graphs.inspect.replays import compare
from ostinato.graphs.inspect.replays.emulation import NEVER_CHECKED, once
from ostinato.graphs.inspect.replays.keeper import Saved
from ostinato.graphs.inspect.replays.replay_findings import Where, causes, frozen_results, unexplained, worst
from ostinato.graphs.inspect.replays.replayer import Replayer, replayer
from ostinato.graphs.inspect.replays.side_buffers import Given, SideBuffers
from ostinato.graphs.inspect.replays.step_run import (
    Run,
    StepRunner,
    names_of,
    own_random_numbers,
    tensors_of,
    values_of,
)
from ostinato.graphs.inspect.report import Finding, Report, in_order
from ostinato.graphs.inspect.source import is_users
from ostinato.graphs.inspect.target import MakeInputs, Step, Target, TargetError, as_target
from ostinato.graphs.inspect.tracing.binding import Binding, Change, another_form
from ostinato.graphs.inspect.tracing.python_state import PythonState
from ostinato.graphs.inspect.tracing.residency import storage_key
from ostinato.graphs.inspect.tracing.trace import not_seen_through
from ostinato.layers.errors import CaptureError

_VARIANTS = 3


def verify(
    fn: Step, make_inputs: MakeInputs, *, batch_size: int = 8, name: str | None = None, time_limit: float = 120.0
) -> Report:
    """Capture ``fn``, replay it on other inputs, and compare with eager: where does it first differ?

    Raises ``TargetError`` if the step raises, or runs for more than ``time_limit`` seconds.
    """
    return verify_target(as_target(fn, make_inputs, name), batch_size=batch_size, time_limit=time_limit)


def verify_target(
    target: Target,
    *,
    batch_size: int = 8,
    time_limit: float = 120.0,
    make_replayer: Callable[[StepRunner, tuple[Any, ...]], Replayer] = replayer,
) -> Report:
    """``verify`` of a loaded target; ``make_replayer`` makes the graph."""
    with own_random_numbers(), only_new_garbage():
        return _started(target, batch_size, time_limit, make_replayer).report()


def _started(target: Target, batch_size: int, limit: float, make: Callable[..., Replayer]) -> _Verification:
    try:
        return _Verification(StepRunner(target, batch_size, limit), make)
    except TargetError as error:
        try:
            return _Verification(StepRunner(target, batch_size, limit, "cpu"), make)
        except TargetError:
            raise error from error.__cause__


class _Verification:
    def __init__(self, runner: StepRunner, make: Callable[..., Replayer]) -> None:
        self._runner, self._make = runner, make
        inputs = runner.inputs(0)
        self._binding = Binding(names_of(runner.target.function, len(inputs)), inputs)
        for _ in range(2):
            runner.run(self._bound(0)).undo()
        self._warm = self._eager(0, self._modules())
        self._floors = self._noise()
        self.findings: list[Finding] = []
        self._unexplained: Finding | None = None
        self._first: tuple[int, str, Where | None] | None = None
        self._apart, self._replays = 0.0, 0
        self._real = make(runner, self._binding.args).is_real

    def _modules(self, window: range | None = None) -> SideBuffers:
        return SideBuffers(self._runner.reach(self._binding.args).modules, window)

    def _bound(self, variant: int) -> tuple[Any, ...]:
        with torch.inference_mode():
            args, shapes, _ = self._binding.load(self._runner.inputs(variant))
        if shapes:
            raise _Misfit(shapes[0])
        return args

    def _eager(self, variant: int, side: SideBuffers) -> Run:
        """A run whose results are kept as they were at its end; what it wrote into tensors is undone."""
        run = self._runner.run(self._bound(variant), listener=side)
        self._values = _values(run)
        run.undo()
        return run

    def _noise(self) -> dict[str, float]:
        """How far apart two eager runs are: the results, and each module."""
        values, side = [], []
        for _ in range(2):
            side.append(self._modules())
            self._eager(0, side[-1]).python.restore()
            values.append(self._values)
        floors = {"": max(compare.apart(values[0], values[1]).values(), default=0.0)}
        for one, other in zip(side[0].given, side[1].given, strict=False):
            floors[one.name] = max(floors.get(one.name, 0.0), _by(one, other))
        return floors

    def report(self) -> Report:
        """Capture, and compare on every variant."""
        side = self._modules()
        try:
            graph, result = self._captured(side)
        except CaptureError as error:
            self.findings.append(_refused(error))
            return self._report()
        variants = _VARIANTS if self._runner.target.has_variants else 1
        for variant in range(variants):
            try:
                self._compare(variant, graph, result, side)
            except _Misfit as misfit:
                self.findings.append(another_form(misfit.change))
            except CaptureError as error:
                self.findings.append(self._failed(error))
        graph.reset()
        self._look_for_freed()
        return self._report()

    def _failed(self, error: CaptureError) -> Finding:
        """A recorded call that does not run again names itself."""
        call = next((call for call in self._warm.trace.calls if str(error).startswith(call.name)), None)
        at = call.place.at if call and call.place else None
        message = f"a replay on other inputs fails: {error}"
        return Finding.of("data-dependent-shape", "error", at, message, call.name if call else None)

    def _look_for_freed(self) -> None:
        """What the step read, and nobody keeps."""
        names, trace = self._names(), self._warm.trace
        self._warm.let_go()
        gc.collect()
        alive = {number for number, storage in enumerate(trace.storages) if not storage.gone}
        self.findings += lifetimes.freed(trace, alive, names)

    def _captured(self, side: SideBuffers) -> tuple[Replayer, Any]:
        graph = self._make(self._runner, self._binding.args)
        return graph, graph.capture(self._bound(0), side)

    def _compare(self, variant: int, graph: Replayer, result: Any, side: SideBuffers) -> None:
        self._bound(variant)
        replayed = self._replayed(graph, result)
        given = [each._replace(values=tuple(t.clone() for t in each.values)) for each in side.given]
        modules = self._modules()
        eager = self._eager(variant, modules)
        self._replays += 1
        apart = {n: by for n, by in compare.apart(replayed, self._values).items() if by > 2 * self._floors[""]}
        returned = compare.changed(values_of("output", result), values_of("output", eager.result))
        self._apart = max([self._apart, *apart.values()])
        if apart and self._first is None:
            eager.python.restore()
            self._first = (variant, *self._bisected(variant, given, modules))
        wrong = worst(apart, variant) or ("it returns another value" if returned else "")
        found = [*causes(self._warm, eager, wrong), *frozen_results(returned, eager)]
        found += lifetimes.moved(self._warm.trace, eager.trace, self._names())
        if apart and self._unexplained is None:
            self._unexplained = unexplained(wrong, self._first[2] if self._first else None)
        self.findings += found

    def _names(self) -> dict[int, str]:
        found = self._runner.reach(self._binding.args).tensors
        return {key: name for name, tensor in found.items() if (key := storage_key(tensor)) is not None}

    def _replayed(self, graph: Replayer, result: Any) -> dict[str, Tensor]:
        """What a replay gives and writes; undone."""
        state = Saved(self._warm.keeper.before.tensors.values())
        graph.replay()
        values = {name: tensor.clone() for name, tensor in tensors_of("output", result).items()}
        values |= {name: tensor.clone() for name, tensor in self._warm.written.items()}
        with torch.inference_mode():
            state.restore()
        return values

    def _bisected(self, variant: int, replayed: list[Given], eager: SideBuffers) -> tuple[str, Where | None]:
        """The first module over the floor, and inside of it the first operation."""
        before, name, end = 0, "", eager.count
        for ours, theirs in zip(replayed, eager.given, strict=False):
            if _by(ours, theirs) > 2 * max(self._floors.get(theirs.name, 0.0), self._floors[""]):
                name, end = theirs.name, theirs.ran
                break
            before = theirs.ran
        window = range(before, end)
        inside, again = self._modules(window), self._modules(window)
        python = PythonState(self._runner.reach(self._binding.args).kept)
        graph, result = self._captured(inside)
        python.restore()
        self._bound(variant)
        self._replayed(graph, result)
        self._eager(variant, again)
        pairs = zip(inside.given, again.given, strict=False)
        off = next(((b, by) for a, b in pairs if (by := _by(a, b)) > 2 * self._floors[""]), None)
        graph.reset()
        where = Where(off[0].name, off[0].module, off[0].at, off[1], off[0].random) if off else None
        return name, where

    def _report(self) -> Report:
        not_checked = list(NEVER_CHECKED)
        if not self._real:
            not_checked.insert(0, "a CUDA graph: the inputs are on no GPU, the emulated graph took its place")
        not_checked += not_seen_through([self._warm.trace])
        if not self._runner.target.has_variants:
            not_checked.append("other inputs: make_inputs takes no variant, so every replay has the capture's")
        first = None
        if self._first is not None:
            variant, module, where = self._first
            first = {"variant": variant, "first_module": module, **(where.as_dict() if where else {})}
        metrics = {
            "batch_size": self._runner.batch_size,
            "graph": "cuda" if self._real else "emulated",
            "modules": len(self._floors) - 1,
            "noise_floor": compare.number(self._floors[""]),
            "largest_difference": compare.number(self._apart),
            "replays": self._replays,
            "first_divergence": first,
        }
        if self._unexplained is not None and not any(finding.severity == "error" for finding in self.findings):
            self.findings.append(self._unexplained)
        findings = in_order(once(self.findings))
        return Report(self._runner.target.name, environment(), findings, metrics, tuple(not_checked))


class _Misfit(Exception):
    """Inputs of another form than those of the capture."""

    def __init__(self, change: Change) -> None:
        super().__init__(change)
        self.change = change


def _values(run: Run) -> dict[str, Tensor]:
    values = {name: tensor.clone() for name, tensor in tensors_of("output", run.result).items()}
    return values | {name: tensor.clone() for name, tensor in run.written.items()}


def _by(one: Given, other: Given) -> float:
    if one.name != other.name or len(one.values) != len(other.values):
        return float("inf")
    return max((compare.difference(a, b) for a, b in zip(one.values, other.values, strict=True)), default=0.0)


def _refused(error: CaptureError) -> Finding:
    cause = error.__cause__ or error
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if is_users(frame.filename)]
    at = (frames[-1].filename, frames[-1].lineno or 0) if frames else None
    return Finding.of("device-sync", "error", at, f"the capture is refused: {error}")
