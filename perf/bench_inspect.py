"""The graph tool on the engine's own decode step: how long ``lint`` takes and how much memory, and ``sizes``.

``lint`` runs in a process of its own with its defaults (batch sizes 1, 2, 4 and 8, three variants): seconds, and the
kernel's high-water mark of resident memory against that of the same process after eager steps of all sizes.
"""

from __future__ import annotations

import json
import sys
import time

from ostinato.perf.bench_memory import resident_bytes
from ostinato.perf.measure import run_child
from ostinato.perf.report import Figure
from ostinato.perf.workbench import Workbench

SIZES = (1, 2, 4, 8)
SECONDS, MEMORY, SEARCH_SECONDS = 20.0, 2.0, 0.2


def measure(bench: Workbench) -> list[Figure]:
    """Seconds and memory of ``lint``, seconds of the best 64 of 512 batch sizes."""
    bench.progress("lint of the decode step")
    seen = run_child(__name__, {"model": str(bench.folder)}, {})
    note = f"{seen['calls']:.0f} ATen calls a step; an eager step of 8 rows takes {1000 * seen['eager']:.0f} ms"
    sums = f"{seen['peak'] / 2**20:,.0f} MiB resident at the most, {seen['base'] / 2**20:,.0f} after eager steps"
    return [
        Figure("inspect.lint_seconds", seen["lint"], "s", SECONDS, "at most", note=note),
        Figure(
            "inspect.lint_memory", seen["peak"] / seen["base"], "x", MEMORY, "at most", note=f"peak / eager: {sums}"
        ),
        Figure("inspect.sizes_seconds", _search(), "s", SEARCH_SECONDS, "at most", note="64 of 512 batch sizes"),
    ]


def _search() -> float:
    from ostinato.graphs.inspect.numbers.sizes import best_sizes

    histogram = {size: 1 + (size * 7919) % 1000 for size in range(1, 513)}
    began = time.perf_counter()
    best_sizes(histogram, None, 64)
    return time.perf_counter() - began


def lint(model: str) -> dict[str, float]:
    """What this process takes."""
    import torch

    from ostinato.graphs.inspect.dry_runs.lint import lint_target
    from ostinato.graphs.inspect.target import Target
    from ostinato.models.step_target import step_target

    step = step_target(model)
    eager = 0.0
    with torch.no_grad():
        for size in SIZES:
            for _ in range(2):
                began = time.perf_counter()
                step.function(*step.make_inputs(size))
                eager = time.perf_counter() - began
    base = resident_bytes("VmHWM")
    began = time.perf_counter()
    report = lint_target(Target("decode step", *step), batch_sizes=SIZES)
    seconds = time.perf_counter() - began
    if report.verdict != "clean":
        raise RuntimeError(f"lint of the decode step is not clean: {report}")
    calls = report.metrics["calls"][str(SIZES[-1])]
    return {"eager": eager, "base": base, "peak": resident_bytes("VmHWM"), "lint": seconds, "calls": calls}


if __name__ == "__main__":
    print(json.dumps(lint(**json.loads(sys.argv[1]))))
