"""All capture hazards of a step, found by dry runs, with lines: no GPU, no capture, no change to the step.

hazards of single calls     -> function_mode, dispatch_mode, hazards
frozen Python values        -> frozen: the capture's calls against those of other values
memory read by address      -> lifetimes
Python that changes state   -> side_effects
padding, slots              -> padding, slots: value tests
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ostinato.graphs.inspect.dry_runs import lifetimes
from ostinato.graphs.inspect.dry_runs.frozen import Difference, aligned, differences, differing_arguments
from ostinato.graphs.inspect.dry_runs.paths import Path, path_of
from ostinato.graphs.inspect.dry_runs.runs import DryRunner, DryRuns
from ostinato.graphs.inspect.environment import environment
from ostinato.graphs.inspect.garbage import only_new_garbage
from ostinato.graphs.inspect.replays.slot_writes import out_of_slot_writes
from ostinato.graphs.inspect.replays.step_run import own_random_numbers
from ostinato.graphs.inspect.report import Finding, Report, in_order
from ostinato.graphs.inspect.target import MakeInputs, Step, Target, TargetError, TargetTimeout, as_target
from ostinato.graphs.inspect.tracing.binding import another_form
from ostinato.graphs.inspect.tracing.python_state import PythonState
from ostinato.graphs.inspect.tracing.reachable import reachable
from ostinato.graphs.inspect.tracing.trace import TensorRef, Trace, not_seen_through

BATCH_SIZES = (1, 2, 4, 8)
NEVER_CHECKED = (
    "other threads: what a step starts there",
    "streams: a side stream that is not joined, or work on the default stream",
    "reuse of addresses inside a graph's memory pool",
)


def lint(
    fn: Step,
    make_inputs: MakeInputs,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    variants: int = 3,
    name: str | None = None,
    time_limit: float = 120.0,
) -> Report:
    """Everything that would break or falsify a capture of ``fn(*make_inputs(batch_size, variant))``.

    ``variants`` different sets of values are run per size; ``time_limit`` is in seconds per run. Raises ``TargetError``
    if the step or ``make_inputs`` raises or does not end.
    """
    return lint_target(
        as_target(fn, make_inputs, name), batch_sizes=batch_sizes, variants=variants, time_limit=time_limit
    )


def lint_target(
    target: Target, *, batch_sizes: Sequence[int] = BATCH_SIZES, variants: int = 3, time_limit: float = 120.0
) -> Report:
    """``lint`` of a loaded target. Python state and random numbers are put back afterwards; tensors are not."""
    state = PythonState([target.function, *reachable(target.function).kept])
    try:
        with own_random_numbers(), only_new_garbage():
            return _lint(target, batch_sizes, variants, time_limit)
    finally:
        state.restore()


def _lint(target: Target, batch_sizes: Sequence[int], variants: int, time_limit: float) -> Report:
    not_checked = list(NEVER_CHECKED)
    device_type = "cuda"
    sizes, failed = _looked_at(DryRunner(target, variants, time_limit, device_type), batch_sizes)
    if not sizes:
        error, device_type = failed[0], "cpu"
        sizes, failed = _looked_at(DryRunner(target, variants, time_limit, device_type), batch_sizes)
        if not sizes:
            raise error from error.__cause__
        not_checked.append(f"which tensors would be on the CPU: told that its inputs are on a GPU, {error}")
    not_checked += [f"a batch size: {error}" for error in failed]
    if not target.has_variants:
        not_checked.append("frozen values: make_inputs takes no variant, so nothing differs between two runs")
    not_checked += dict.fromkeys(line for size in sizes for line in size.not_seen_through)
    findings = merged([(size.batch_size, size.findings) for size in sizes])
    largest = max(size.batch_size for size in sizes)
    out_of_slot, why = out_of_slot_writes(target, largest, time_limit=time_limit, device_type=device_type)
    findings += out_of_slot
    not_checked += why
    return Report(target.name, environment(), in_order(findings), _metrics(sizes), tuple(not_checked))


class Looked(NamedTuple):
    """What is left of the runs of one batch size: traces are large."""

    batch_size: int
    findings: list[Finding]
    numbers: dict[str, Any]
    not_seen_through: list[str]
    mutated: frozenset[str]


def _looked_at(runner: DryRunner, batch_sizes: Sequence[int]) -> tuple[list[Looked], list[TargetError]]:
    """Largest first, as graphs are captured.

    A size whose first run goes the way of a larger one, and goes it for all values, has that one's findings.
    """
    looked: dict[int, Looked] = {}
    ways: dict[Path, Looked] = {}
    failed: list[TargetError] = []
    for size in sorted(set(batch_sizes), reverse=True):
        try:
            looked[size] = _looked_at_one(runner, size, ways)
        except TargetError as error:
            failed.append(error)
            if isinstance(error, TargetTimeout):
                break  # not waited for at each size
    return [looked[size] for size in dict.fromkeys(batch_sizes) if size in looked], failed


def _looked_at_one(runner: DryRunner, size: int, ways: dict[Path, Looked]) -> Looked:
    first = runner.begin(size)
    known = ways.get(path_of(first.trace))
    if known is not None and first.mutated <= known.mutated and runner.is_steady(first):
        numbers = _numbers(first.trace, first.names, first.outputs)
        return known._replace(batch_size=size, numbers=numbers)
    run = runner.go_on(first)
    looked = Looked(
        batch_size=size,
        findings=list(_findings(run)),
        numbers=_numbers(run.capture, run.names, run.outputs),
        not_seen_through=not_seen_through((run.capture, *run.others)),
        mutated=frozenset(run.mutations),
    )
    ways.setdefault(path_of(run.capture), looked)
    return looked


def _findings(run: DryRuns) -> Iterator[Finding]:
    yield from _of_calls(run)
    yield from _unsettled(run)
    yield from _frozen(run)
    yield from _memory(run)
    yield from _python(run)
    yield from _compiles(run)


def _of_calls(run: DryRuns) -> Iterator[Finding]:
    """What single calls of the capture do; a host scalar is harmless only if it is the same in each run."""
    others = {(f.code, f.line, f.op, f.evidence) for other in run.others for f in other.findings}
    for finding in run.capture.findings:
        same = (finding.code, finding.line, finding.op, finding.evidence) in others
        if finding.code == "cpu-tensor" and finding.severity == "info" and run.others and not same:
            finding = replace(finding, severity="error", evidence=f"{finding.evidence} at capture, another otherwise")
        yield finding


def _compiles(run: DryRuns) -> Iterator[Finding]:
    """Compiling after the warm-up: new calls of a compiler, and compiled functions that are called otherwise."""
    for other in run.others:
        yield from (finding for finding in other.findings if finding.code == "late-compile")
        for call, again in aligned(run.capture, other):
            shapes = [[list(ref.shape) for ref in each.inputs] for each in (call, again)]
            differs = shapes[0] != shapes[1] or any(True for _ in differing_arguments(call, again))
            if call.region is not None and differs:
                name, place = call.region
                message = f"the compiled function {name} is called with another shape or number than at capture"
                evidence = f"{call.name} on {call.inputs!r} and {again.inputs!r}"
                yield Finding.of("late-compile", "warning", place.at if place else None, message, name, evidence)


def _unsettled(run: DryRuns) -> Iterator[Finding]:
    """Differences between runs of the same values."""
    settled = True
    for difference in differences(run.warm_ups[1], run.capture):
        settled = False
        message = f"{difference.op} differs from run to run with the same inputs"
        code = "warmup-dependent" if difference.another_path else "frozen-value"
        yield _of_difference(code, "error", message, difference)
    if settled:
        for difference in differences(run.warm_ups[0], run.warm_ups[1]):
            message = "the first run does something else here than the later ones, of which one is captured"
            yield _of_difference("warmup-dependent", "warning", message, difference)


def _frozen(run: DryRuns) -> Iterator[Finding]:
    inputs = ", ".join(f"{c.name} {c.before} -> {c.after}" for c in run.values[:4])
    yield from map(another_form, run.shapes)
    dynamic = {(f.file, f.line) for f in run.capture.findings if f.code == "data-dependent-shape"}
    for other in run.others:
        for difference in differences(run.capture, other):
            if difference.another_path and difference.place and difference.place.at in dynamic:
                continue  # another number of elements, not another branch
            message = f"{difference.op} keeps a Python value of the capture"
            if difference.another_path:
                message = "a branch or loop in Python is decided by values: the graph has the path of the capture"
            yield _of_difference("frozen-value", "error", message, difference, inputs)


def _results(trace: Trace) -> Iterator[int]:
    return (storage.key for storage in trace.storages if storage.produced_by is not None and not storage.gone)


def _of_difference(code: str, severity: Any, message: str, difference: Difference, inputs: str = "") -> Finding:
    evidence = difference.what + (f"; inputs: {inputs}" if inputs else "")
    at = difference.place.at if difference.place else None
    return Finding.of(code, severity, at, message, difference.op, evidence)


def _memory(run: DryRuns) -> Iterator[Finding]:
    yield from lifetimes.moved(run.warm_ups[1], run.capture, run.names)
    for later in run.others:
        yield from lifetimes.moved(run.capture, later, run.names, [change.name for change in run.shapes])
    yield from lifetimes.freed(run.capture, run.alive, run.names)
    yield from lifetimes.held(run.capture, run.alive, run.names, len(run.others), run.lines)
    yield from lifetimes.returned(run.capture, run.outputs, run.input_keys, run.names)


def _python(run: DryRuns) -> Iterator[Finding]:
    results = set(_results(run.capture))
    said = {(finding.file, finding.line) for finding in _memory(run) if finding.code == "output-overwritten"}
    for name, (before, after) in run.mutations.items():
        if isinstance(after, tuple) and after and after[0] in results:
            continue  # a result of the step that is held
        place = run.lines.get(name)
        at = place.at if place else None
        if at in said:
            continue
        if isinstance(before, tuple) or isinstance(after, tuple):
            message = f"{name} is another tensor after the step; a replay leaves it as it is"
            yield Finding.of("address-change", "warning", at, message)
        else:
            message = f"{name} changes in Python; a replay leaves it as it is"
            yield Finding.of("python-side-effect", "warning", at, message, evidence=f"{before!r} -> {after!r}"[:200])


def merged(by_size: Sequence[tuple[int, list[Finding]]]) -> list[Finding]:
    """One finding for all batch sizes that have it; which ones is added to the evidence where it is not all."""
    sizes: dict[tuple[Any, ...], list[int]] = {}
    first: dict[tuple[Any, ...], Finding] = {}
    for size, findings in by_size:
        for finding in findings:
            key = (
                finding.code,
                finding.severity,
                finding.file,
                finding.line,
                finding.op if finding.line is None else "",
            )
            first.setdefault(key, finding)
            if size not in sizes.setdefault(key, []):
                sizes[key].append(size)
    everywhere = [size for size, _ in by_size]
    return [finding if sizes[key] == everywhere else _only_at(finding, sizes[key]) for key, finding in first.items()]


def _only_at(finding: Finding, sizes: list[int]) -> Finding:
    only = f"at batch size {', '.join(map(str, sizes))}"
    return replace(finding, evidence=f"{finding.evidence}; {only}" if finding.evidence else only)


def _metrics(sizes: Sequence[Looked]) -> dict[str, Any]:
    """Numbers by batch size, and of the largest one by name what a graph reads, writes and returns."""
    numbers = {str(size.batch_size): size.numbers for size in sizes}
    largest = numbers[str(max(size.batch_size for size in sizes))]
    return {
        "batch_sizes": [size.batch_size for size in sizes],
        "calls": {size: each["calls"] for size, each in numbers.items()},
        "reads_by_address": [each["name"] for each in largest["external_inputs"]],
        "writes_in_place": largest["written"],
        "outputs_overwritten_by_next": largest["outputs"],
        "by_batch_size": numbers,
    }


def _numbers(trace: Trace, names: Mapping[int, str], outputs: Sequence[TensorRef]) -> dict[str, Any]:
    """``external_inputs``: memory from before the step, which goes stale if it moves; ``storage`` tells aliases."""
    external = [(number, each) for number, each in enumerate(trace.storages) if each.produced_by is None]
    written = {number for call in trace.calls for number in call.writes}
    return {
        "calls": len(trace.calls),
        "modules": len({call.module for call in trace.calls if call.module}),
        "external_inputs": [
            {"name": names.get(each.key, "unnamed"), "storage": number, "bytes": each.num_bytes}
            for number, each in external
        ],
        "written": sorted({names.get(each.key, "unnamed") for number, each in external if number in written}),
        "outputs": [repr(output) for output in outputs],
    }
