"""Starts with 12 batch sizes in processes of their own: from an empty compile cache, then from the one that filled.

Warm-up is a start without reading the checkpoint and loading weights. The import of torch is not in either.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

from ostinato.perf.gpu.context import WIDE, Context
from ostinato.perf.gpu.engine import LOADING, capture_seconds, known
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.measure import Summary, run_child

WARM_STARTS = 2


def measure(context: Context) -> Finding:
    """Seconds of both starts, and milliseconds of capturing one batch size."""
    context.close_engine()
    options = known(WIDE | {"device": context.device, "kv_cache_memory": context.kv_bytes(WIDE) // 4})
    with tempfile.TemporaryDirectory(prefix="ostinato-gpu-check-") as cache:

        def start(doing: str) -> dict[str, Any]:
            context.progress(doing)
            environment = {
                "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "inductor"),
                "TRITON_CACHE_DIR": os.path.join(cache, "triton"),
            }
            arguments = {"model": str(context.folder), "options": options}
            return run_child("ostinato.perf.bench_compile", arguments, environment)

        cold = start("a start with an empty compile cache")
        warm = [start(f"a start with a full one, {n} of {WARM_STARTS}") for n in range(1, WARM_STARTS + 1)]
    sizes = len(WIDE["capture_sizes"])
    captures = [1e3 * capture_seconds(each["phases"]) / sizes for each in warm]
    return Finding.of(
        {
            "startup.s_cold": Summary.of([cold["seconds"]]),
            "startup.s_warm": Summary.of([_beyond_loading(each) for each in warm]),
            "startup.ms_capture": Summary.of(captures),
        },
        (f"{sizes} batch sizes, a graph of each for every way of sampling; their warm-up runs are included",),
        cold=cold,
        warm=warm,
    )


def _beyond_loading(start: Mapping[str, Any]) -> float:
    phases: Mapping[str, float] = start["phases"]
    return float(start["seconds"]) - sum(phases.get(phase, 0.0) for phase in LOADING)
