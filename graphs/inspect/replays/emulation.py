"""Does a replay compute what the step computes? Captured on the emulated graph, replayed on fresh inputs, compared.

noise      -> the step twice from one state; with another seed: random numbers
each step  -> replay against eager: outputs, and everything that either wrote
the cause  -> the call whose Python argument differs from the capture's, or the first call with other values
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from ostinato.graphs.inspect.dry_runs import lifetimes
from ostinato.graphs.inspect.environment import environment
from ostinato.graphs.inspect.garbage import only_new_garbage
from ostinato.graphs.inspect.replays import compare
from ostinato.graphs.inspect.replays.first_divergence import of_replay, of_seed
from ostinato.graphs.inspect.replays.input_moves import moved_inputs
from ostinato.graphs.inspect.replays.padding import padding_leaks
from ostinato.graphs.inspect.replays.rehearsal import Outcome, Rehearsal, ReplayFailed
from ostinato.graphs.inspect.replays.replay_findings import (
    Where,
    causes,
    frozen_results,
    random_numbers,
    unexplained,
    unsettled,
    worst,
)
from ostinato.graphs.inspect.replays.slot_shuffle import shuffled_slots
from ostinato.graphs.inspect.replays.slot_writes import out_of_slot_writes
from ostinato.graphs.inspect.replays.step_run import StepRunner, own_random_numbers
from ostinato.graphs.inspect.report import SEVERITIES, Finding, Report, in_order
from ostinato.graphs.inspect.target import MakeInputs, Step, Target, TargetError, as_target
from ostinato.graphs.inspect.tracing.binding import another_form
from ostinato.graphs.inspect.tracing.residency import storage_key
from ostinato.graphs.inspect.tracing.trace import not_seen_through

NEVER_CHECKED = (
    "streams: a side stream that is not joined, or work on the default stream",
    "reuse of addresses inside a graph's memory pool",
)


def emulate(
    fn: Step,
    make_inputs: MakeInputs,
    *,
    batch_size: int = 8,
    steps: int = 4,
    poison_padding: bool = False,
    move_inputs: bool = False,
    shuffle_slots: bool = False,
    name: str | None = None,
    time_limit: float = 120.0,
) -> Report:
    """Capture ``fn`` on the emulated graph, replay it on ``steps`` fresh inputs and compare with eager runs.

    ``poison_padding``: fill padding rows and unused cache with values that real rows must not see. ``move_inputs``:
    what if an input is handed over in new memory. ``shuffle_slots``: permute the blocks of a paged cache; nothing may
    change. The state goes on as the eager runs left it.
    Raises ``TargetError`` if the step raises, or runs for more than ``time_limit`` seconds.
    """
    return emulate_target(
        as_target(fn, make_inputs, name),
        batch_size=batch_size,
        steps=steps,
        poison_padding=poison_padding,
        move_inputs=move_inputs,
        shuffle_slots=shuffle_slots,
        time_limit=time_limit,
    )


def emulate_target(
    target: Target,
    *,
    batch_size: int = 8,
    steps: int = 4,
    poison_padding: bool = False,
    move_inputs: bool = False,
    shuffle_slots: bool = False,
    time_limit: float = 120.0,
) -> Report:
    """``emulate`` of a loaded target."""
    with own_random_numbers(), only_new_garbage():
        emulation, device_type = _emulation(target, batch_size, time_limit)
        emulation.compare_steps(steps)
        if move_inputs:
            emulation.findings += moved_inputs(emulation.rehearsal)
        if shuffle_slots:
            emulation.add(*shuffled_slots(emulation.rehearsal))
        emulation.look_at_memory()
    emulation.add(*out_of_slot_writes(target, batch_size, time_limit=time_limit, device_type=device_type))
    if poison_padding:
        emulation.add(*padding_leaks(target, batch_size, time_limit=time_limit, device_type=device_type))
    return emulation.report()


def _emulation(target: Target, batch_size: int, limit: float) -> tuple[_Emulation, str]:
    """As if there were a GPU; where the step does not run so, as on the CPU that it is on."""
    try:
        return _Emulation(StepRunner(target, batch_size, limit)), "cuda"
    except TargetError as error:
        try:
            return _Emulation(StepRunner(target, batch_size, limit, "cpu")), "cpu"
        except TargetError:
            raise error from error.__cause__


class _Emulation:
    """One emulation and what it found."""

    def __init__(self, runner: StepRunner) -> None:
        self.target = runner.target
        self.rehearsal = Rehearsal(runner)
        self.findings: list[Finding] = []
        self.not_checked = [*NEVER_CHECKED]
        self._steps, self._replays, self._apart = 0, 0, 0.0
        self._unexplained: Finding | None = None
        """What is said of a difference for which no cause is found."""
        self._first: tuple[int, Where] | None = None
        graph = self.rehearsal.graph
        self.not_checked += not_seen_through([self.rehearsal.capture.trace])
        if graph.breaks:
            self.not_checked.append(f"calls that stay outside of the graph: {', '.join(graph.breaks)}")
        if not runner.target.has_variants:
            self.not_checked.append("other inputs: make_inputs takes no variant, so every replay has the capture's")

    def add(self, findings: list[Finding], not_checked: list[str]) -> None:
        """Results of a further check."""
        self.findings += findings
        self.not_checked += not_checked

    def compare_steps(self, steps: int) -> None:
        """Noise first, then every variant; findings are gathered."""
        self._noise()
        self.findings += unsettled(self.rehearsal)
        for variant in range(steps):
            bound = self.rehearsal.bind(variant)
            self.findings += map(another_form, bound.shapes)
            self._steps += 1
            if not bound.shapes:
                self._compare(variant, bound.args)

    def _noise(self) -> None:
        """How far two eager runs from one state are apart, and whether another seed changes them."""
        rehearsal = self.rehearsal
        one, other, reseeded = (rehearsal.eager_values(seed) for seed in (0, 0, 1))
        rehearsal.floor = max(compare.apart(one, other).values(), default=0.0)
        if any(by > 2 * rehearsal.floor for by in compare.apart(one, reseeded).values()):
            self.findings += random_numbers(of_seed(rehearsal, 0))
        self.findings += random_numbers(None, rehearsal.capture.trace)
        if rehearsal.floor > 0:
            text = compare.describe(rehearsal.floor)
            self.not_checked.append(f"differences below the noise: two eager runs from one state are {text} apart")

    def _compare(self, variant: int, args: tuple[Any, ...]) -> None:
        try:
            outcome = self.rehearsal.compare(args)
        except ReplayFailed as failure:
            at = failure.call.place.at if failure.call and failure.call.place else None
            op = failure.call.name if failure.call else None
            message = f"a replay on other inputs fails: {failure}"
            self.findings.append(Finding.of("data-dependent-shape", "error", at, message, op))
            return
        self._replays += 1
        self._apart = max([self._apart, *outcome.apart.values()])
        self.findings += list(self._explained(variant, outcome))

    def _explained(self, variant: int, outcome: Outcome) -> Iterator[Finding]:
        rehearsal = self.rehearsal
        wrong = worst(outcome.apart, variant) or ("it returns another value" if outcome.returned else "")
        found = list(causes(rehearsal.capture, outcome.eager, wrong))
        found += frozen_results(outcome.returned, outcome.eager)
        found += lifetimes.moved(rehearsal.capture.trace, outcome.eager.trace, rehearsal.names())
        if outcome.apart and self._first is None:
            outcome.eager.undo_all()
            divergence = of_replay(rehearsal, variant)
            self._first = (variant, Where.of(divergence)) if divergence is not None else None
            rehearsal.runner.run(rehearsal.bind(variant).args)  # the state goes on as after the step
        if outcome.apart and self._unexplained is None:
            self._unexplained = unexplained(wrong, self._first[1] if self._first else None)
        yield from found

    def look_at_memory(self) -> None:
        """Addresses that changed, and what only the graph keeps alive. The graph is of no use afterwards."""
        rehearsal = self.rehearsal
        names, capture = rehearsal.names(), rehearsal.capture.trace
        self._metrics = self._numbers(names)
        self.kept = rehearsal.binding
        self.findings += lifetimes.moved(rehearsal.warm_ups[1].trace, capture, names)
        rehearsal.close()
        gc.collect()
        alive = {number for number, storage in enumerate(capture.storages) if not storage.gone}
        self.findings += lifetimes.freed(capture, alive, names)
        self.findings += lifetimes.held(capture, alive, names, self._steps, {})

    def _numbers(self, names: dict[int, str]) -> dict[str, Any]:
        rehearsal = self.rehearsal
        trace = rehearsal.capture.trace
        own = {storage.key for storage in trace.storages if storage.produced_by is not None}
        return {
            "batch_size": rehearsal.runner.batch_size,
            "calls": len(trace.calls),
            "recorded": len(rehearsal.graph.calls),
            "steps": self._steps,
            "replays": self._replays,
            "replay_equals_eager": self._apart == 0.0 and self._replays == self._steps,
            "largest_difference": compare.number(self._apart),
            "noise_floor": compare.number(rehearsal.floor),
            "first_divergence": {"variant": self._first[0], **self._first[1].as_dict()} if self._first else None,
            "reads_by_address": sorted(names.get(key, "unnamed") for key in trace.externals),
            "written": sorted(rehearsal.capture.written),
            "outputs_overwritten_by_the_next_replay": [
                name for name, tensor in rehearsal.outputs.items() if storage_key(tensor) in own
            ],
        }

    def report(self) -> Report:
        """What was found."""
        if self._unexplained is not None and not any(finding.severity == "error" for finding in self.findings):
            self.findings.append(self._unexplained)
        return Report(
            self.target.name,
            environment(),
            in_order(once(self.findings)),
            self._metrics,
            tuple(dict.fromkeys(self.not_checked)),
        )


def once(findings: list[Finding]) -> list[Finding]:
    """The most severe finding for each code, place and operator; the earliest of equals."""
    best: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        key = finding.code, finding.file, finding.line, finding.op if finding.line else finding.message
        if key not in best or SEVERITIES.index(finding.severity) < SEVERITIES.index(best[key].severity):
            best[key] = finding
    return list(best.values())
