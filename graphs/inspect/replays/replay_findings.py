"""Why a replay differs from eager, as findings: what the capture froze, drew at random, or met in its warm-up only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ostinato.graphs.inspect.dry_runs.frozen import Difference, differences
from ostinato.graphs.inspect.replays.compare import describe, number
from ostinato.graphs.inspect.replays.first_divergence import Divergence
from ostinato.graphs.inspect.replays.rehearsal import Rehearsal
from ostinato.graphs.inspect.replays.step_run import Run
from ostinato.graphs.inspect.report import Finding, Severity
from ostinato.graphs.inspect.tracing.trace import Call, Trace

_READS = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal")
Returned = Mapping[str, tuple[Any, Any]]
_SEEDED = torch.Tag.nondeterministic_seeded


class Where(NamedTuple):
    """The first operation that gives other values at replay."""

    op: str
    module: str
    at: tuple[str, int] | None
    by: float
    random: bool

    @classmethod
    def of(cls, divergence: Divergence) -> Where:
        """From a call in a trace."""
        call = divergence.call
        return cls(call.name, call.module, _at(call), divergence.by, _SEEDED in call.op.tags)

    def as_dict(self) -> dict[str, Any]:
        """For metrics."""
        file, line = self.at or (None, None)
        return {"op": self.op, "module": self.module, "file": file, "line": line, "difference": number(self.by)}


def worst(apart: Mapping[str, float], variant: int) -> str:
    """What differs most, as a clause; empty if nothing does."""
    if not apart:
        return ""
    name = max(apart, key=lambda each: apart[each])
    return f"{name} is off by {describe(apart[name])} at variant {variant}"


def unsettled(rehearsal: Rehearsal) -> Iterator[Finding]:
    """What the two warm-ups and the capture did otherwise, on the same inputs."""
    first, second = rehearsal.warm_ups
    settled = True
    for difference in _all_differences(second, rehearsal.capture):
        settled = False
        code = "warmup-dependent" if difference.another_path else "frozen-value"
        message = f"{difference.op} differs from run to run with the same inputs"
        yield _finding(code, "error", message, difference)
    if settled:
        for difference in _all_differences(first, second):
            message = "the first run does something else here than the later ones, of which one is captured"
            yield _finding("warmup-dependent", "warning", message, difference)


def causes(capture: Run, eager: Run, wrong: str) -> Iterator[Finding]:
    """Python values and branches of the capture that eager has otherwise; ``wrong``: what differs then, or nothing."""
    effect = f"; {wrong}" if wrong else ""
    for difference in _all_differences(capture, eager):
        message = f"{difference.op} keeps a Python value of the capture"
        if difference.another_path:
            message = "a branch or loop in Python is decided by values: the graph has the path of the capture"
        yield _finding("frozen-value", "error" if wrong else "warning", message, difference, effect)


def frozen_results(returned: Returned, eager: Run) -> Iterator[Finding]:
    """Python values that the step returns: after a replay the caller still has those of the capture."""
    reads = [call for call in eager.trace.calls if call.name.startswith(_READS)]
    last = reads[-1] if reads else None
    for name, (old, new) in returned.items():
        message = f"{name} is a Python value: a replay returns that of the capture"
        yield Finding.of("frozen-value", "error", _at(last), message, last.name if last else None, f"{old} -> {new}")


def unexplained(wrong: str, where: Where | None) -> Finding:
    """A difference that no argument and no address explains."""
    fix = "make what it depends on a tensor that is written with copy_"
    if where is None:
        return Finding.of("frozen-value", "error", None, f"a replay differs from eager: {wrong}", fix=fix)
    message = f"{where.op} gives other values at replay than eagerly, with the same arguments"
    evidence = f"off by {describe(where.by)} there; {wrong}"
    code = "rng" if where.random else "frozen-value"
    return Finding.of(code, "error", where.at, message, where.op, evidence, fix if code == "frozen-value" else "")


def random_numbers(divergence: Divergence | None, trace: Trace | None = None) -> Iterator[Finding]:
    """Where another seed first changes a value; in a ``trace``, calls that draw from a generator of their own."""
    if divergence is not None:
        call = divergence.call
        message = f"{call.name} draws random numbers: a graph repeats them, or needs the generator registered"
        evidence = f"another seed changes it by {describe(divergence.by)}"
        yield Finding.of("rng", "warning", _at(call), message, call.name, evidence)
    for call in trace.calls if trace is not None else ():
        if any(isinstance(value, torch.Generator) for value in (*call.args, *call.kwargs.values())):
            message = f"{call.name} draws from a generator of its own, which the graph has to know"
            fix = "graph.register_generator_state(generator) before the capture"
            yield Finding.of("rng", "error", _at(call), message, call.name, fix=fix)


def _all_differences(one: Run, other: Run) -> Iterator[Difference]:
    return differences(without_detach(one.trace), without_detach(other.trace))


def without_detach(trace: Trace) -> Trace:
    """``trace`` without a call that torch makes of itself, now and then, for a tensor that it has just made."""
    return replace(trace, calls=[call for call in trace.calls if call.op is not torch.ops.aten.detach.default])


def _finding(code: str, severity: Severity, message: str, difference: Difference, effect: str = "") -> Finding:
    at = difference.place.at if difference.place else None
    return Finding.of(code, severity, at, message, difference.op, difference.what + effect)


def _at(call: Call | None) -> tuple[str, int] | None:
    return call.place.at if call is not None and call.place else None
