"""For tests: assertions that a replay equals eager, and that padding does not reach real rows."""

from __future__ import annotations

from collections.abc import Sequence

from ostinato.graphs.inspect.replays.emulation import emulate_target
from ostinato.graphs.inspect.replays.padding import padding_leaks
from ostinato.graphs.inspect.report import Finding
from ostinato.graphs.inspect.target import MakeInputs, Step, as_target


def assert_replay_equals_eager(fn: Step, make_inputs: MakeInputs, *, batch_size: int = 8, steps: int = 4) -> None:
    """Raise ``AssertionError`` with every finding if a replay on fresh inputs does not do what ``fn`` does."""
    target = as_target(fn, make_inputs)
    report = emulate_target(target, batch_size=batch_size, steps=steps)
    _assert_none(target.name, "a replay does not do what the step does", report.errors)
    assert report.metrics["replay_equals_eager"], f"{target.name}: {report.metrics['first_divergence']}"


def assert_padding_isolated(fn: Step, make_inputs: MakeInputs, *, batch_size: int = 8) -> None:
    """Raise ``AssertionError`` with every finding if padding rows, or unused cache, change a real row of ``fn``."""
    target = as_target(fn, make_inputs)
    findings, _ = padding_leaks(target, batch_size)
    _assert_none(target.name, "padding changes real rows", findings)


def _assert_none(name: str, what: str, findings: Sequence[Finding]) -> None:
    if findings:
        lines = [f"  {f.file}:{f.line}: {f.code}: {f.message} ({f.evidence}); {f.fix}" for f in findings]
        raise AssertionError("\n".join([f"{name}: {what}", *lines]))
