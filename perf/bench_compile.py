"""How long warm-up takes, from an empty compile cache and from a full one, each start in a process of its own.

Warm-up is what a compiled start (every variant of the step: batch 1; batch 2 and up; prompts; greedy, drawn and
filtered sampling; and all captures) takes longer than an eager start of the same model, which reads the checkpoint,
loads weights and allocates alike. So the import of torch's compiler counts, and from an empty cache Inductor's probe of
the toolchain and its precompiled header too; the import of torch itself does not. Empty is measured once, eager and
full three times.
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

REPEATS = 3


def measure(bench: Workbench) -> list[Figure]:
    """A figure for the empty cache and one for the full one."""
    with tempfile.TemporaryDirectory(prefix="ostinato-perf-") as cache:

        def run(doing: str, **options: str) -> dict[str, Any]:
            bench.progress(doing)
            arguments = {"model": str(bench.folder), "options": {**bench.engine_options, **options}}
            # Inductor keeps its precompiled header below TMPDIR, whatever its cache folder is.
            return run_child(__name__, arguments, {"TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache})

        eager = [run(f"starting uncompiled, {n} of {REPEATS}", execution="eager") for n in range(1, REPEATS + 1)]
        empty = run("starting with an empty compile cache")
        full = [run(f"starting with a full one, {n} of {REPEATS}") for n in range(1, REPEATS + 1)]
    loading = Summary.of([start["seconds"] for start in eager]).median
    return [
        _figure("compile.s_empty_cache", [empty], loading, 35.0, "an empty compile cache"),
        _figure("compile.s_full_cache", full, loading, 8.0, "a full one"),
    ]


def _figure(name: str, starts: Sequence[Mapping[str, Any]], loading: float, target: float, cache: str) -> Figure:
    phases = starts[0]["phases"]
    slowest = max(phases, key=lambda phase: phases[phase])
    return Figure.of(
        name,
        Summary.of([start["seconds"] - loading for start in starts]),
        "s",
        target=target,
        bound="at most",
        note=f"warm-up from {cache}, beyond {loading:.1f} s of loading; most: {slowest} ({phases[slowest]:.1f} s)",
        detail=starts[0],
    )


def start(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Start an engine in this process: seconds, by phase too, and those of a processor, the C++ compiler's included."""
    import torch  # noqa: F401  (not part of it)

    from ostinato import LLM

    began, cpu_began = time.perf_counter(), _cpu_seconds()
    with LLM(model, **options) as llm:
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "phases": llm.startup, "cpu_seconds": _cpu_seconds() - cpu_began}


def _cpu_seconds() -> float:
    """Processor time of this process, to the nanosecond, and of the children that have ended, in clock ticks."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


if __name__ == "__main__":
    print(json.dumps(start(**json.loads(sys.argv[1]))))
