"""The options that commands of ``ostinato graph`` share, and what their text means. Knows no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from ostinato.layers.errors import ConfigError

TargetName = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, with make_inputs(batch_size, variant=0) beside it; "
        "or a checkpoint: a folder, a hub id, or demo.",
    ),
]
CaptureFile = Annotated[str, typer.Argument(metavar="FILE", help="A saved capture: run.ograph.")]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write one JSON object there; - is stdout, in place of text."),
]
BatchSizes = Annotated[str, typer.Option("--batch-sizes", metavar="N,N", help="Batch sizes to look at.")]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Rows of the step.")]
OneOfSizes = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", help="Which graph of the file; the largest, by default.")
]
Variants = Annotated[
    int, typer.Option("--variants", metavar="N", help="How many variants of make_inputs to run at each size.")
]
RunLimit = Annotated[float, typer.Option("--time-limit", metavar="SECONDS", help="What one run of the step may take.")]
WholeLimit = Annotated[float, typer.Option("--time-limit", metavar="SECONDS", help="What all of it may take.")]


def sizes_of(text: str, option: str = "--batch-sizes") -> tuple[int, ...]:
    """``(1, 2, 4)`` of "1,2,4"; ``ConfigError`` for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"{option}: expected sizes from 1 up, as in 1,2,4,8; got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def at_least_one(option: str, value: float) -> None:
    """``ConfigError`` for a count or a limit that leaves nothing to do."""
    if not value > 0:
        raise ConfigError(f"{option}: expected more than 0, got {value:g}")
