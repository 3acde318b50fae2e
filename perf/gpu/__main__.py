"""``python -m ostinato.perf.gpu``: measure the targets for a GPU, print which are met, keep the results.

Results are written after every part, so that nothing measured is lost. `make gpu-check` runs the GPU tests first.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ostinato.perf.gpu import picture, report
from ostinato.perf.gpu.budget import Budget
from ostinato.perf.gpu.parts import PARTS, Part
from ostinato.perf.gpu.supervisor import run_parts

SIZES = ("qwen3-0.6b", "tiny")
NO_DEVICE = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or read an earlier run, and show it; the exit status of the check."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.read:
        try:
            results = report.read(args.read)
        except ValueError as error:
            parser.error(str(error))
        return _show(results, args.read, results["parts"])
    gpu, why = _device()
    if gpu is None:
        print(f"no CUDA device: nothing was checked ({why})", file=sys.stderr)
        return NO_DEVICE
    path = args.out / f"gpu-{args.name or report.slug(gpu)}.json"
    results = _begin(args, gpu, path)
    before = signal.signal(signal.SIGTERM, _leave)  # so that a `timeout` from outside ends the worker too
    try:
        run(args, results, path)
    finally:
        signal.signal(signal.SIGTERM, before)
    return _show(results, path, args.only)


def run(args: argparse.Namespace, results: dict[str, Any], path: Path) -> None:
    """Run the parts that were asked for; ``results`` and ``path`` have each as soon as it is done."""

    def begun(part: Part) -> None:
        _say(f"{part.name}: {part.what} ({budget.left:.0f} s left)")

    def done(part: Part, outcome: dict[str, Any]) -> None:
        report.add_part(results, part.name, outcome)
        report.write(results, path)
        error = f": {outcome['error']}" if outcome["error"] else ""
        _say(f"{part.name}: {outcome['status']}, {outcome['seconds']:.0f} s{error}")

    budget = Budget(args.budget)
    parts = [part for part in PARTS if part.name in args.only]
    run_parts(parts, {"size": args.size, "rounds": args.rounds, "out": str(args.out)}, budget, done, begun)


def _begin(args: argparse.Namespace, gpu: str, path: Path) -> dict[str, Any]:
    """A new report, with the other parts of the old one where ``--add`` says so."""
    results = report.new_report(gpu, _label(gpu), args.size, args.tests)
    if args.add and path.exists():
        earlier = report.read(path)
        if (earlier["machine"], earlier["size"]) == (results["machine"], results["size"]):
            for name, outcome in earlier["parts"].items():
                if name not in args.only:
                    report.add_part(results, name, outcome)
            results["tests"] = args.tests if args.tests != "not run" else earlier["tests"]
    report.write(results, path)
    return results


def _show(results: dict[str, Any], path: Path, asked: Sequence[str]) -> int:
    """Print the table, draw the picture beside the JSON; the exit status."""
    print(report.render(results))
    if picture.can_draw():
        picture.draw(results, path.with_suffix(".png"))
        print(f"{path} and {path.with_suffix('.png').name}")
    else:
        print(f"{path}; no picture: this Python has no matplotlib")
    if skipped := [name for name, part in results["parts"].items() if part["status"] == "skipped"]:
        print(f"for want of time: python -m ostinato.perf.gpu --add --only {','.join(skipped)}")
    return report.exit_status(results, asked)


def _device() -> tuple[str | None, str]:
    """The name of the CUDA device that torch sees; without one None, and why."""
    try:
        import torch
    except ImportError as error:
        return None, f"this Python has no torch: {error}"
    if not torch.cuda.is_available():
        return None, f"torch {torch.__version__} sees none"
    return torch.cuda.get_device_name(0), ""


def _label(gpu: str) -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "triton", "transformers")]
    return f"{gpu}, {', '.join(versions)}, Python {platform.python_version()}"


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    names = tuple(part.name for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m ostinato.perf.gpu",
        description="Measure ostinato on a CUDA device against floors and peers of the same run.",
        epilog="Parts: " + "; ".join(f"{part.name}: {part.what}" for part in PARTS) + ".",
    )
    add = parser.add_argument
    add("--only", type=_names, default=names, metavar="A,B", help="some parts; default all")
    add("--add", action="store_true", help="keep the other parts of the results that are there")
    add("--budget", type=float, default=420.0, metavar="SECONDS", help="for all parts; default %(default)g")
    add("--rounds", type=int, default=6, metavar="N", help="measurements of each; default %(default)s")
    add("--size", choices=SIZES, default=SIZES[0], help="sizes of the model; default %(default)s")
    add("--out", type=Path, default=Path("perf/results"), metavar="DIR", help="for the results; default %(default)s")
    add("--name", help="of the results: gpu-NAME.json and .png; default the device's name")
    add("--tests", choices=report.TESTS, default="not run", help="what became of the GPU tests; for the report")
    add("--read", type=Path, metavar="FILE", help="show the results of an earlier run, measure nothing")
    return parser


def _names(text: str) -> tuple[str, ...]:
    known = [part.name for part in PARTS]
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else f": there are {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"no part is called {name!r}{hint}")
    return names


if __name__ == "__main__":
    sys.exit(main())
