"""How long warm-up takes, from an empty compile cache and from a full one, each in a process of its own.

Warm-up is all that start-up does beyond reading the checkpoint, loading weights and allocating the KV cache: every
compiled variant of the step (batch 1; batch 2 and up; prompts; greedy, drawn and filtered sampling) and all captures.
The import of torch's compiler and its search for a C++ compiler, which the engine does while it allocates, are done and
timed before, and counted. From an empty cache Inductor's probe of the toolchain and its precompiled headers are in
it too: they live in the cache folder. The import of torch itself is not. Empty is measured once, full three times.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ostinato.perf.measure import Summary, run_child
from ostinato.perf.report import Figure
from ostinato.perf.workbench import Workbench

FULL_RUNS = 3
NOT_WARM_UP = ("reading the checkpoint", "loading weights", "allocating the KV cache")
IMPORT = "importing the compiler"


def measure(bench: Workbench) -> list[Figure]:
    """A figure for the empty cache and one for the full one."""
    with tempfile.TemporaryDirectory(prefix="ostinato-perf-") as cache:

        def run(doing: str) -> dict[str, Any]:
            bench.progress(doing)
            arguments = {"model": str(bench.folder), "options": bench.engine_options}
            return run_child(__name__, arguments, {"TORCHINDUCTOR_CACHE_DIR": cache})

        empty = run("starting with an empty compile cache")
        full = [run(f"starting with a full one, {number} of {FULL_RUNS}") for number in range(1, FULL_RUNS + 1)]
    return [
        _figure("compile.s_empty_cache", [empty], 35.0, "an empty compile cache"),
        _figure("compile.s_full_cache", full, 8.0, "a full one"),
    ]


def _figure(name: str, starts: Sequence[Mapping[str, Any]], target: float, cache: str) -> Figure:
    warm_ups = [warm_up_phases(start["phases"]) for start in starts]
    first = warm_ups[0]
    slowest = max(first, key=lambda phase: first[phase])
    return Figure.of(
        name,
        Summary.of([sum(phases.values()) for phases in warm_ups]),
        "s",
        target=target,
        bound="at most",
        note=f"warm-up from {cache}; most of it {slowest} ({first[slowest]:.1f} s)",
        detail=starts[0],
    )


def warm_up_phases(startup: Mapping[str, float]) -> dict[str, float]:
    """The seconds of ``LLM.startup`` that are warm-up, by phase."""
    return {phase: seconds for phase, seconds in startup.items() if phase not in NOT_WARM_UP}


def start(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Start an engine in this process: seconds by phase, and those of a processor, the C++ compiler's included."""
    import torch  # noqa: F401  (not part of it)

    from ostinato import LLM
    from ostinato.graphs.compiled import cpp_compiler_problem

    began, cpu_began = time.perf_counter(), _cpu_seconds()
    cpp_compiler_problem()
    import_seconds = time.perf_counter() - began
    with LLM(model, **options) as llm:
        return {"phases": {IMPORT: import_seconds, **llm.startup}, "cpu_seconds": _cpu_seconds() - cpu_began}


def _cpu_seconds() -> float:
    """Processor time of this process and of the children that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    print(json.dumps(start(**json.loads(sys.argv[1]))))
