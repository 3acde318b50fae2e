"""Commands that run a step: lint, breaks, emulate, verify, startup. Imports torch when one of them runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from ostinato.graphs.inspect.cli_output import check_writable, put_result, users_code

if TYPE_CHECKING:
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


COMMANDS = (lint, breaks, emulate, verify, startup)


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
