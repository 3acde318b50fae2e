"""``python -m ostinato.perf``: run the benchmarks, print one table, and one JSON object as the last line.

Parses and checks its arguments before anything is measured, and imports torch only then.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.perf import plot, report

if TYPE_CHECKING:
    from ostinato.perf.report import Figure
    from ostinato.perf.workbench import Workbench

# In this order: what runs in processes of its own goes before this process holds models and threads.
BENCHES = {
    "compile": "warm-up from an empty and from a full compile cache",
    "memory": "peak memory of loading and generating",
    "load": "peak memory and speed of loading weights, by the form of the files",
    "long": "a prompt of 100,000 tokens in chunks: time of a token, memory",
    "inspect": "the graph tool: time and memory of a lint of the decode step",
    "host": "host work of a decode step",
    "decode": "batch-1 decode against transformers and the floor",
    "ttft": "time to the first token against transformers",
    "prefix": "time to the first token with 2,048 cached tokens",
    "batch": "decode of 1 to 16 requests at once",
    "moe": "a mixture of experts for one token against computing every expert",
}
SIZE_NAMES = ("qwen3-0.6b", "tiny")
EXECUTIONS = ("graph", "compile", "eager", "emulate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or read an earlier run, and show it."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        _check(args)
        results = report.read_report(args.read) if args.read else None
        if results and args.plot and (missing := plot.missing_figures(results)):
            raise ValueError(f"--plot: {args.read} has no {', '.join(missing)}")
    except ValueError as error:
        parser.error(str(error))
    if results is None:
        results = run(args)
    report.print_table(results)
    if args.plot:
        plot.plot_latency(results, args.plot)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results))
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for; the report."""
    from ostinato.perf import checkpoints, machine
    from ostinato.perf.workbench import Workbench

    began, load = time.perf_counter(), os.getloadavg()[0]
    size = checkpoints.SIZES[args.size]
    folder = checkpoints.prepare(size, checkpoints.cache_root(), _say)
    figures: list[Figure] = []
    with Workbench(size, folder, execution=args.execution, rounds=args.rounds) as bench:
        for name in BENCHES:
            if name in args.only:
                figures += _measure(name, bench)
        figures += bench.kept_promises()
    here = machine.this_machine()
    return report.make_report(
        size.name,
        here.as_dict(),
        str(here),
        figures,
        execution=args.execution,
        load_before=round(load, 2),
        seconds=round(time.perf_counter() - began, 1),
    )


def _measure(name: str, bench: Workbench) -> list[Figure]:
    _say(f"{name}: {BENCHES[name]}")
    figures: list[Figure] = importlib.import_module(f"ostinato.perf.bench_{name}").measure(bench)
    return figures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ostinato.perf",
        description="Benchmarks of ostinato on a CPU beside transformers and the floor: ratios of one run. "
        "The checkpoint has random weights, is written once and kept in ~/.cache/ostinato/perf (or XDG_CACHE_HOME).",
        epilog="Benchmarks: " + "; ".join(f"{name}: {what}" for name, what in BENCHES.items()) + ".",
    )
    add = parser.add_argument
    add("--size", choices=SIZE_NAMES, default=SIZE_NAMES[0], help="sizes of the model; default %(default)s")
    add("--only", type=_names, default=tuple(BENCHES), metavar="A,B", help="some benchmarks; default all")
    add("--rounds", type=_count, default=6, metavar="N", help="measurements of each; default %(default)s")
    add("--execution", choices=EXECUTIONS, default="graph", help="of the engine; default %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the report here too")
    add("--plot", type=Path, metavar="FILE", help="draw the time of a token, as PNG or SVG")
    add("--read", type=Path, metavar="FILE", help="show the report of an earlier run, measure nothing")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in BENCHES:
            close = difflib.get_close_matches(name, BENCHES, 1)
            hint = f"; did you mean {close[0]}?" if close else f": there are {', '.join(BENCHES)}"
            raise argparse.ArgumentTypeError(f"no benchmark is called {name!r}{hint}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a number of rounds from 1 to 1,000, got {text!r}")
    return int(text)


def _check(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for what would fail only after minutes of measuring."""
    for option in ("json", "plot"):
        path: Path | None = getattr(args, option)
        if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
            raise ValueError(f"--{option}: cannot write {path}")
    if args.plot and not plot.can_plot():
        raise ValueError("--plot needs matplotlib: pip install 'ostinato[perf]'")
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        raise ValueError(f"--plot: expected a file that ends in .png or .svg, got {args.plot}")
    if args.plot and args.read is None and "decode" not in args.only:
        raise ValueError("--plot draws the decode benchmark: --only leaves it out")


if __name__ == "__main__":
    sys.exit(main())
