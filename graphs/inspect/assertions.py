"""For tests of any framework: a step is safe to capture, compiles once, replays what it computes, isolates padding.

    from ostinato.graphs.inspect import assert_capture_safe

    def test_decode() -> None:
        assert_capture_safe(decode, make_inputs)

Each runs one check of the tool and returns its report, or raises ``CheckFailed``, an ``AssertionError`` that says what
was found, at which line, and what to write instead. The pytest plugin has them as fixtures of the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ostinato.graphs.inspect.dry_runs.lint import lint_target
from ostinato.graphs.inspect.dynamo.breaks import breaks_target
from ostinato.graphs.inspect.replays.emulation import emulate_target
from ostinato.graphs.inspect.report import Finding, Report
from ostinato.graphs.inspect.report_text import as_text
from ostinato.graphs.inspect.target import MakeInputs, Step, as_target

_BATCH_SIZES = (1, 2, 4, 8)


class CheckFailed(AssertionError):
    """What was found; ``report`` is all of it."""

    def __init__(self, what: str, report: Report, found: Iterable[Finding]) -> None:
        shown = replace(report, findings=tuple(found), metrics={}, not_checked=())
        super().__init__(f"{what}\n{as_text(shown)}")
        self.report = report


def assert_capture_safe(
    fn: Step,
    make_inputs: MakeInputs,
    *,
    batch_sizes: Sequence[int] = _BATCH_SIZES,
    variants: int = 3,
    name: str | None = None,
    time_limit: float = 120.0,
) -> Report:
    """``lint`` finds nothing of severity error in ``fn(*make_inputs(batch_size, variant))``."""
    __tracebackhide__ = True
    target = as_target(fn, make_inputs, name)
    report = lint_target(target, batch_sizes=batch_sizes, variants=variants, time_limit=time_limit)
    return _passed(report, f"{target.name} is not safe to capture", report.errors)


def assert_no_recompile(
    fn: Step,
    make_inputs: MakeInputs,
    *,
    batch_sizes: Sequence[int] = _BATCH_SIZES,
    variants: int = 3,
    name: str | None = None,
) -> Report:
    """torch.compile compiles ``fn`` once, and once more for the first other batch size; breaks are not looked at."""
    __tracebackhide__ = True
    target = as_target(fn, make_inputs, name)
    report = breaks_target(target, batch_sizes=batch_sizes, variants=variants)
    found = [each for each in report.findings if each.code == "recompile" and each.severity != "info"]
    return _passed(report, f"{target.name} is compiled again", found)


def assert_replay_equals_eager(
    fn: Step,
    make_inputs: MakeInputs,
    *,
    batch_size: int = 8,
    steps: int = 4,
    name: str | None = None,
    time_limit: float = 120.0,
) -> Report:
    """On ``steps`` fresh inputs, a replay of the emulated graph computes and writes what ``fn`` does."""
    __tracebackhide__ = True
    target = as_target(fn, make_inputs, name)
    report = emulate_target(target, batch_size=batch_size, steps=steps, time_limit=time_limit)
    what = f"{target.name}: a replay does not do what the step does"
    _passed(report, what, report.errors)
    if not report.metrics["replay_equals_eager"]:
        raise CheckFailed(f"{what}: {report.metrics['first_divergence']}", report, report.findings)
    return report


def assert_padding_isolated(
    fn: Step, make_inputs: MakeInputs, *, batch_size: int = 8, name: str | None = None, time_limit: float = 120.0
) -> Report:
    """What lies in padding rows, or in unused cache, changes no real row of ``fn``."""
    __tracebackhide__ = True
    target = as_target(fn, make_inputs, name)
    report = emulate_target(target, batch_size=batch_size, steps=1, poison_padding=True, time_limit=time_limit)
    found = [each for each in report.findings if each.code == "padding-leak" and each.severity != "info"]
    return _passed(report, f"{target.name}: padding changes real rows", found)


def _passed(report: Report, what: str, found: Sequence[Finding]) -> Report:
    __tracebackhide__ = True
    if found:
        raise CheckFailed(what, report, found)
    return report
