"""Commands that run a step: lint, breaks, emulate, verify, capture, startup. Imports torch when one of them runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ostinato.graphs.inspect.cli_options import (
    BatchSize,
    BatchSizes,
    JsonFile,
    RunLimit,
    TargetName,
    Variants,
    WholeLimit,
    at_least_one,
    sizes_of,
)
from ostinato.graphs.inspect.cli_output import STDOUT, check_writable, put_result, users_code
from ostinato.layers.errors import ConfigError

if TYPE_CHECKING:
    from ostinato.graphs.inspect.capturing.ograph import OGraph
    from ostinato.graphs.inspect.report import Report
    from ostinato.graphs.inspect.target import Target

RUN_LIMIT = 120.0
"""Seconds that one dry run may take."""


@dataclass(frozen=True)
class Program:
    """What these commands are part of."""

    resolve: Callable[[str], Target] | None
    """Makes a target of what is no ``place:function``: the name of a checkpoint."""
    command: tuple[str, ...]
    """The command line under which the commands are found, to run one of them in another process."""


def lint(
    context: typer.Context,
    target: TargetName,
    batch_sizes: BatchSizes = "1,2,4,8",
    variants: Variants = 3,
    time_limit: RunLimit = RUN_LIMIT,
    json_file: JsonFile = None,
) -> None:
    """All capture hazards of a step with lines, reasons and fixes, from dry runs; no GPU needed."""
    sizes = sizes_of(batch_sizes)
    at_least_one("--variants", variants)

    def check(loaded: Target) -> Report:
        from ostinato.graphs.inspect.dry_runs.lint import lint_target

        return lint_target(loaded, batch_sizes=sizes, variants=variants, time_limit=time_limit)

    _report(context, target, time_limit, json_file, check)


def breaks(
    context: typer.Context,
    target: TargetName,
    batch_sizes: BatchSizes = "1,2,4,8",
    variants: Variants = 3,
    time_limit: WholeLimit = 600.0,
    json_file: JsonFile = None,
) -> None:
    """Where torch.compile ends its graph, and compiles again, over a walk of sizes and variants."""
    sizes = sizes_of(batch_sizes)
    at_least_one("--variants", variants)

    def check(loaded: Target) -> Report:
        from ostinato.graphs.inspect.dynamo.breaks import breaks_target
        from ostinato.graphs.inspect.time_limit import time_limit as limited

        with limited(time_limit, f"{loaded.name}: the walk of sizes and variants"):
            return breaks_target(loaded, batch_sizes=sizes, variants=variants)

    _report(context, target, time_limit, json_file, check)


def emulate(
    context: typer.Context,
    target: TargetName,
    batch_size: BatchSize = 8,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Replays on fresh inputs.")] = 4,
    poison_padding: Annotated[
        bool, typer.Option("--poison-padding", help="Fill padding rows and unused cache: real rows must not change.")
    ] = False,
    move_inputs: Annotated[
        bool, typer.Option("--move-inputs", help="What if an input is handed over in new memory?")
    ] = False,
    shuffle_slots: Annotated[
        bool, typer.Option("--shuffle-slots", help="Permute the blocks of a paged cache: nothing may change.")
    ] = False,
    time_limit: RunLimit = RUN_LIMIT,
    json_file: JsonFile = None,
) -> None:
    """Capture on the emulated graph, replay on fresh inputs, and compare with eager; no GPU needed."""
    at_least_one("--batch-size", batch_size)
    at_least_one("--steps", steps)

    def check(loaded: Target) -> Report:
        from ostinato.graphs.inspect.replays.emulation import emulate_target

        return emulate_target(
            loaded,
            batch_size=batch_size,
            steps=steps,
            poison_padding=poison_padding,
            move_inputs=move_inputs,
            shuffle_slots=shuffle_slots,
            time_limit=time_limit,
        )

    _report(context, target, time_limit, json_file, check)


def verify(
    context: typer.Context,
    target: TargetName,
    batch_size: BatchSize = 8,
    time_limit: RunLimit = RUN_LIMIT,
    json_file: JsonFile = None,
) -> None:
    """Compare a captured graph with eager, by layer, then by operation; emulated where there is no GPU."""
    at_least_one("--batch-size", batch_size)

    def check(loaded: Target) -> Report:
        from ostinato.graphs.inspect.replays.verification import verify_target

        return verify_target(loaded, batch_size=batch_size, time_limit=time_limit)

    _report(context, target, time_limit, json_file, check)


def capture(
    context: typer.Context,
    target: TargetName,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Where to save it: run.ograph, run.ograph.gz.")
    ] = None,
    batch_sizes: BatchSizes = "1,2,4,8",
    no_lint: Annotated[
        bool, typer.Option("--no-lint", help="Do not lint it too; the file then has no findings.")
    ] = False,
    time_limit: WholeLimit = 600.0,
    json_file: JsonFile = None,
) -> None:
    """Save what is in the graph of each size: nodes, operations, lines, bytes, times; at op level without a GPU."""
    sizes = sizes_of(batch_sizes)
    at_least_one("--time-limit", time_limit)
    if output is None and json_file is None:
        raise ConfigError("where to? give -o run.ograph")
    if output == STDOUT:
        raise ConfigError("-o: expected a file; --json - writes to stdout")
    check_writable("-o", output)
    check_writable("--json", json_file)
    program: Program = context.obj
    linted = None if no_lint else _lint_apart(program, target, batch_sizes, min(time_limit, RUN_LIMIT))
    with users_code(target):
        captured = _captured(program, target, sizes, time_limit)
    if linted is not None:
        captured = replace(
            captured,
            findings=tuple(asdict(finding) for finding in linted.findings),
            not_checked=tuple(dict.fromkeys((*captured.not_checked, *linted.not_checked))),
        )
    if output is not None:
        _save(captured, output)
    put_result(lambda: _capture_text(captured, linted, output), captured.as_dict(), json_file)
    raise typer.Exit(1 if linted is not None and linted.errors else 0)


def startup(
    context: typer.Context,
    target: TargetName,
    batch_sizes: BatchSizes = "1",
    time_limit: WholeLimit = 1800.0,
    json_file: JsonFile = None,
) -> None:
    """What is waited for before the first step: tracing, compilation, kernels, capture; which cache missed, and why."""
    sizes = sizes_of(batch_sizes)
    at_least_one("--time-limit", time_limit)
    check_writable("--json", json_file)
    with users_code(target):
        from ostinato.graphs.inspect.dynamo.startup import startup_target, startup_text
        from ostinato.graphs.inspect.time_limit import time_limit as limited

        loaded = load(context.obj, target)
        with limited(time_limit, f"{loaded.name}: the start-up"):
            result = startup_target(loaded, batch_sizes=sizes)
    put_result(lambda: startup_text(result), result, json_file)


COMMANDS = (lint, breaks, emulate, verify, capture, startup)


def load(program: Program, text: str) -> Target:
    """``place:function`` imported; what has no function is the name of a checkpoint."""
    from ostinato.graphs.inspect.target import load_target

    names_function = ":" in text and not Path(text).is_dir()
    if program.resolve is None or names_function or text.endswith(".py"):
        return load_target(text)
    return program.resolve(text)


def _report(
    context: typer.Context, target: str, seconds: float, json_file: str | None, check: Callable[[Target], Report]
) -> None:
    """Run a check, show what it found, and end with 1 if there is an error among it."""
    at_least_one("--time-limit", seconds)
    check_writable("--json", json_file)
    with users_code(target):
        from ostinato.graphs.inspect.report_text import as_text

        report = check(load(context.obj, target))
    put_result(lambda: as_text(report), report.as_dict(), json_file)
    raise typer.Exit(1 if report.errors else 0)


def _lint_apart(program: Program, target: str, batch_sizes: str, seconds: float) -> Report:
    """``lint`` in a process of its own: a dry run pretends that the step's tensors are elsewhere, and what the step
    keeps for later (caches, tables) would keep that too."""
    from ostinato.graphs.inspect.report import Report

    options = ["--batch-sizes", batch_sizes, "--time-limit", str(seconds), "--json", STDOUT]
    done = subprocess.run(
        [*program.command, "lint", target, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode not in (0, 1):
        why = done.stderr.strip().rpartition("\n")[2].removeprefix("error: ") or f"exit code {done.returncode}"
        raise ConfigError(f"lint: {why}{'; --no-lint captures without it' if 'unexpected' in why else ''}")
    return Report.from_dict(json.loads(done.stdout))


def _captured(program: Program, target: str, sizes: tuple[int, ...], seconds: float) -> OGraph:
    from ostinato.graphs.inspect.capturing.capture import capture_target
    from ostinato.graphs.inspect.time_limit import time_limit

    loaded = load(program, target)
    with time_limit(seconds, f"{loaded.name}: the capture"):
        return capture_target(loaded, batch_sizes=sizes)


def _save(captured: OGraph, output: str) -> None:
    try:
        captured.save(output)
    except OSError as error:
        raise ConfigError(f"-o: cannot write {output!r}: {error.strerror or error}") from error


def _capture_text(captured: OGraph, linted: Report | None, output: str | None) -> str:
    from ostinato.graphs.inspect.capturing.show import summary
    from ostinato.graphs.inspect.report import Report
    from ostinato.graphs.inspect.report_text import as_text

    graphs = [captured.graphs[size] for size in sorted(captured.graphs)]
    width = len(str(graphs[-1].batch_size))
    lines = [f"batch size {graph.batch_size:>{width}}: {summary(graph)}" for graph in graphs]
    saved = [] if output is None else [f"saved as {output}"]
    findings = () if linted is None else linted.findings
    found = as_text(Report(captured.target, captured.environment, findings, {}, captured.not_checked))
    if linted is None:  # what nobody looked for is not clean
        found = f"{captured.target}: not linted\n\n{found.partition(chr(10) * 2)[2]}"
    return "\n".join([*lines, *saved, "", found])
