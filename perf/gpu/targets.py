"""The targets, and whether a run's figures meet them.

A target is held against one figure of one part. Times in ms and µs are stated for an H200; ratios hold anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Bound = Literal["at least", "at most"]
Verdict = Literal["met", "missed", "not measured"]


@dataclass(frozen=True)
class Target:
    """``figure`` has to be ``bound`` ``limit``; ``floor`` is the figure that says what the machine allows.

    ``now``: asked of today's engine, or of a later one (fused layers, programmatic launch). ``correctness``: a miss
    fails the check.
    """

    id: str
    what: str
    figure: str
    bound: Bound
    limit: float
    unit: str
    now: bool = True
    floor: str | None = None
    correctness: bool = False

    @property
    def part(self) -> str:
        """The part that measures it."""
        return self.figure.partition(".")[0]


def most(id: str, what: str, figure: str, limit: float, unit: str, **others: Any) -> Target:
    """A target that bounds from above."""
    return Target(id, what, figure, "at most", limit, unit, **others)


def least(id: str, what: str, figure: str, limit: float, unit: str, **others: Any) -> Target:
    """A target that bounds from below."""
    return Target(id, what, figure, "at least", limit, unit, **others)


LATER: dict[str, Any] = {"now": False}
TARGETS = (
    most("A1", "writes inside a compiled function: bytes copied", "assumptions.copied_bytes", 0, "B", correctness=True),
    least("A2", "nodes of a captured graph come in the order of creation", "assumptions.in_order", 1, ""),
    least("A3", "nodes of the decode step's graph that belong to an op", "inspect.attributed_8", 100, "%"),
    least("fp32", "greedy tokens in fp32 equal to transformers'", "correctness.fp32_equal", 100, "%", correctness=True),
    most("bf16", "error in bf16, transformers' own = 1", "correctness.bf16_error", 2, "x", correctness=True),
    most("T1", "0.6B, batch 1: a token", "decode.ms_ostinato", 0.9, "ms", floor="decode.ms_floor"),
    least("T2", "0.6B, batch 1: transformers eager / ostinato", "decode.vs_transformers", 10, "x"),
    least("G1", "0.6B, batch 1: share of the floor, first", "decode.percent_of_floor", 65, "%", **LATER),
    least("G1", "0.6B, batch 1: share of the floor", "decode.percent_of_floor", 75, "%", **LATER),
    least("G1", "0.6B, batch 1: share of the floor, stretch", "decode.percent_of_floor", 85, "%", **LATER),
    least("G1", "0.6B, batch 1: transformers eager / ostinato", "decode.vs_transformers", 20, "x", **LATER),
    least("G1", "0.6B, batch 1: plain CUDA graph / ostinato", "decode.vs_plain_graph", 2.5, "x", **LATER),
    least("G2", "1B, batch 1: share of the floor", "larger.percent_of_floor_1b", 80, "%", **LATER),
    least("G2", "8B, batch 1: share of the floor", "larger.percent_of_floor_8b", 90, "%", **LATER),
    least("G3", "0.6B, batch 16, 2k: share of the floor", "batch.percent_of_floor_16", 80, "%", **LATER),
    least("G3", "0.6B, batch 64, 2k: share of the floor", "batch.percent_of_floor_64", 80, "%", **LATER),
    least("G3", "0.6B, batch 256, 2k: share of the floor", "batch.percent_of_floor_256", 80, "%", **LATER),
    most("G3", "a size's step / the next larger size's, worst", "batch.worst_size_ratio", 1.02, "x"),
    least("G4", "nano-vllm's benchmark: share of its floor", "throughput.percent_of_floor", 75, "%", **LATER),
    least("G4", "the same scheduler in nano-vllm's manner / ostinato", "throughput.vs_nano_manner", 1.3, "x", **LATER),
    most("G5", "first token of 128", "ttft.ms_128", 1.0, "ms", floor="ttft.ms_floor_128", **LATER),
    most("G5", "first token of 1,024", "ttft.ms_1024", 2.6, "ms", floor="ttft.ms_floor_1024", **LATER),
    least("G6", "16k tokens: cold / cached first token", "prefix.speedup", 40, "x", **LATER),
    most("G6", "16k tokens: hashing and lookup", "prefix.ms_lookup", 0.3, "ms", **LATER),
    most("T3", "wall time of a step / its GPU time", "steps.wall_over_gpu", 1.05, "x"),
    most("G7", "wall time of a step / its GPU time", "steps.wall_over_gpu", 1.03, "x", **LATER),
    most("G7", "the host's own work of a step", "host.us_1", 40, "µs"),
    most("G7", "time between tokens, 99 % / median", "steps.p99_over_p50", 1.10, "x", **LATER),
    most("T4", "top-p in the graph, over greedy, batch 1", "sampling.us_top_p", 30, "µs"),
    most("G8", "top-k and top-p in the graph, over greedy, batch 1", "sampling.us_filtered", 15, "µs", **LATER),
    most("G8", "top-k and top-p in the graph, over greedy, batch 256", "sampling_256.us_filtered", 80, "µs", **LATER),
    least("T5", "decode attention, batch 64, 2k: share of read rate", "attention.percent_of_bandwidth", 80, "%"),
    most("T6", "capture, a batch size", "startup.ms_capture", 100, "ms"),
    most("G9", "capture, a batch size", "startup.ms_capture", 60, "ms", **LATER),
    most("G9", "warm start of 12 sizes, beyond loading", "startup.s_warm", 3, "s", **LATER),
    most("G9", "cold start", "startup.s_cold", 45, "s"),
)


def judge(target: Target, figures: Mapping[str, float]) -> Verdict:
    """What ``figures`` say of ``target``; a figure that is not a number misses."""
    value = figures.get(target.figure)
    if value is None:
        return "not measured"
    met = value >= target.limit if target.bound == "at least" else value <= target.limit
    return "met" if met else "missed"


def verdicts(figures: Mapping[str, float], targets: Sequence[Target] = TARGETS) -> list[dict[str, Any]]:
    """A row per target, for the report and the table."""
    return [
        {
            "id": target.id,
            "what": target.what,
            "figure": target.figure,
            "value": figures.get(target.figure),
            "bound": target.bound,
            "limit": target.limit,
            "unit": target.unit,
            "floor": figures.get(target.floor) if target.floor else None,
            "asked": "now" if target.now else "later",
            "correctness": target.correctness,
            "verdict": judge(target, figures),
        }
        for target in targets
    ]
