"""How much longer a decode step takes than its graph does on the GPU, and how even the steps are; batch 1.

Wall times come from runs without events, GPU times from runs with an event on either side of every replay; the copies
in and out are not between them. Runs alternate.
"""

from __future__ import annotations

import statistics

from ostinato.perf.gpu.context import LATENCY, Context
from ostinato.perf.gpu.decoding import Decoding
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.gpu.timing import percentile
from ostinato.perf.measure import Summary, interleave

STEPS = 240


def measure(context: Context) -> Finding:
    """The ratio of medians, and the unevenness of the times between tokens."""
    llm = context.engine(LATENCY)
    intervals: list[float] = []

    def wall() -> float:
        with Decoding(llm, [context.prompt()], STEPS + 64) as batch:
            seconds = batch.step_seconds(STEPS)
        intervals.extend(seconds)
        return 1e3 * statistics.fmean(seconds)

    def gpu() -> float:
        with Decoding(llm, [context.prompt()], STEPS + 64) as batch:
            return 1e3 * statistics.fmean(batch.replay_seconds(STEPS))

    values = interleave({"wall": wall, "gpu": gpu}, context.rounds, context.progress)
    counted = intervals[STEPS:]  # the first round does not count
    evenness = percentile(counted, 99) / statistics.median(counted)
    return Finding.of(
        {
            "steps.wall_over_gpu": Summary.of_ratio(values["wall"], values["gpu"]),
            "steps.ms_wall": Summary.of(values["wall"]),
            "steps.ms_gpu": Summary.of(values["gpu"]),
            "steps.p99_over_p50": Summary.of([evenness]),
        },
        (f"{len(counted):,} steps; GPU time: between events around each replay, copies left out",),
    )
