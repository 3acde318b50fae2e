"""``ostinato graph capture``: what is in the graphs, and what lint says of the step, in one file.

``lint`` runs in a process of its own: a dry run pretends that tensors are elsewhere, and what a step or a library keeps
for later must not remember that at the capture. Imports torch when it runs.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from ostinato.graphs.inspect.cli_options import BatchSizes, JsonFile, TargetName, WholeLimit, at_least_one, sizes_of
from ostinato.graphs.inspect.cli_output import STDOUT, check_writable, put_result, users_code
from ostinato.graphs.inspect.cli_targets import RUN_LIMIT, Program, load
from ostinato.layers.errors import ConfigError

if TYPE_CHECKING:
    from ostinato.graphs.inspect.capturing.ograph import OGraph
    from ostinato.graphs.inspect.report import Report


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


def _lint_apart(program: Program, target: str, batch_sizes: str, seconds: float) -> Report:
    """``lint`` in a process of its own."""
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
