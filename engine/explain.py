"""What an engine's graphs are and how they served: ``llm.explain()``, as a report of the graph tool.

Reads counters, runs nothing. Findings are broken promises and split graphs; what might be better is ``advice`` in the
metrics, each piece with the option to set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ostinato.graphs.inspect.environment import environment
from ostinato.graphs.inspect.numbers.sizes import advise
from ostinato.graphs.inspect.report import Finding, Report, in_order

if TYPE_CHECKING:
    from ostinato.core import EngineCore
    from ostinato.stats import Stats

ENOUGH_STEPS = 100
"""Decode steps below which a histogram says nothing about the traffic."""
WORTH = 0.01
"""Share of the computed rows that better sizes must save to be proposed."""


def explain(core: EngineCore) -> Report:
    """The report of an engine now; ``EngineDead`` after ``close``."""
    stats = core.stats()
    sizes = _sizes(core, stats)
    metrics = _metrics(core, stats, sizes)
    metrics["advice"] = [*_advice(core, stats, sizes)]
    not_checked = (
        "what the step itself does: `ostinato graph lint` on the checkpoint",
        "padding of captured steps with prompts",
    )
    findings = in_order(_findings(core, stats))
    return Report(str(core.plan.config.model), environment(), findings, metrics, not_checked)


def _metrics(core: EngineCore, stats: Stats, sizes: dict[str, Any] | None) -> dict[str, Any]:
    graphs, runner = core.runner.graphs, core.runner
    decode_steps = sum(stats.batch_histogram.values())
    return {
        "execution": f"{core.plan.config.execution} ({runner.backend} backend)",
        "decode_sizes": list(graphs.decode.sizes),
        "prefill_sizes": list(graphs.prefill.sizes),
        "dropped_sizes": {
            f"{size} {'rows' if kind is graphs.decode else 'tokens'}": reason
            for kind in graphs.sets
            for size, reason in sorted(kind.dropped.items())
        },
        "graph_bytes": stats.graph_bytes,
        "decode_steps": decode_steps,
        "mixed_steps": stats.mixed_steps,
        "replays": _by_text(stats.replays),
        "prefill_replays": _by_text(stats.prefill_replays),
        "eager_fallbacks": dict(stats.eager_fallbacks),
        "mixed_steps_without_graph": dict(stats.steps_without_graph) if graphs.decode.sizes else {},
        "eager_breaks": list(stats.eager_breaks),
        "launches_held_back": stats.launches_held_back,
        "recompiles": stats.compiles_after_warmup - runner.promises.late_kernels,
        "late_kernel_compiles": runner.promises.late_kernels,
        "late_captures": stats.captures_after_warmup,
        "batch_histogram": _by_text(stats.batch_histogram),
        "padding_rows": _by_text(_padding(core, stats)),
        "padding_share": None if sizes is None else sizes["wasted_now"],
        "sizes": sizes,
    }


def _by_text(counts: Any) -> dict[str, int]:
    return {str(size): count for size, count in sorted(counts.items())}


def _padding(core: EngineCore, stats: Stats) -> dict[int, int]:
    """Padding rows by the size that computed them."""
    padding: dict[int, int] = {}
    for rows, steps in stats.batch_histogram.items():
        size = core.runner.graphs.decode.size_for(rows)
        if size is not None and size > rows:
            padding[size] = padding.get(size, 0) + steps * (size - rows)
    return padding


def _sizes(core: EngineCore, stats: Stats) -> dict[str, Any] | None:
    """What ``inspect.sizes`` says of the traffic; None where there are no graphs, or no decode steps yet.

    ``max_num_seqs`` gets a graph always, so it takes part, with no steps if it never came.
    """
    sizes = core.runner.graphs.decode.sizes
    if not sizes or not stats.batch_histogram:
        return None
    histogram = {core.plan.config.max_num_seqs: 0} | dict(stats.batch_histogram)
    return advise(histogram, len(sizes), current=sizes)


def _findings(core: EngineCore, stats: Stats) -> Iterator[Finding]:
    kernels = core.runner.promises.late_kernels
    pieces = stats.compiles_after_warmup - kernels
    if pieces:
        yield Finding.of(
            "recompile",
            "warning",
            None,
            f"{pieces:,} pieces of the step were compiled after warm-up, while requests waited",
            evidence=f"{stats.compiles:,} compilations in all",
            fix="leave torch._dynamo alone while an engine is open (reset() throws its code away); "
            "LLM(…, debug=True) raises at the step where it happens",
        )
    if kernels or stats.captures_after_warmup:
        yield Finding.of(
            "late-compile",
            "warning",
            None,
            f"{kernels:,} kernels were compiled and {stats.captures_after_warmup:,} graphs captured after warm-up, "
            "while requests waited",
            fix="LLM(…, debug=True) raises at the step where it happens; please report it: warm-up should have done it",
        )
    for name in stats.eager_breaks:
        yield Finding.of(
            "graph-break",
            "info",
            None,
            f"{name} is marked eager_break: every graph is split around it, and it runs from Python at each replay",
            op=name,
            fix="make it capturable (no sync, no allocation on the host) and take eager_break away",
        )


def _advice(core: EngineCore, stats: Stats, sizes: dict[str, Any] | None) -> Iterator[str]:
    config = core.plan.config
    for reason, steps in stats.eager_fallbacks.items():
        yield f"{steps:,} steps ran uncompiled or without their graph: {reason}."
    if core.runner.graphs.decode.dropped:
        yield "There was no memory for some graphs: lower kv_cache_memory, or name fewer sizes in capture_sizes=[…]."
    if not core.plan.captures:
        yield f"Nothing is captured with execution={config.execution!r}: execution='graph' replays graphs."
    too_long = [steps for reason, steps in stats.steps_without_graph.items() if "more than" in reason]
    if core.runner.graphs.prefill.sizes and too_long:
        largest = core.runner.graphs.prefill.sizes[-1]
        yield (
            f"{sum(too_long):,} steps with prompts were too large for a graph: prefill_capture_sizes=[…] beyond "
            f"{largest} would serve the shorter of them, which matters for the first token's time."
        )
    if stats.launches_held_back:
        yield (
            f"{stats.launches_held_back:,} steps were not launched ahead: what a request might draw depended on its "
            "last token (structured_outputs, long bad_words, logits_processors), so the device waited for the host."
        )
    if processed := stats.steps_without_graph.get("logits_processors"):
        yield f"{processed:,} steps called logits_processors: such steps run from Python, without their graph."
    if sizes is not None:
        yield _about_sizes(stats, sizes)


def _about_sizes(stats: Stats, sizes: dict[str, Any]) -> str:
    steps, now, best = sum(stats.batch_histogram.values()), sizes["wasted_now"], sizes["wasted_best"]
    if steps < ENOUGH_STEPS:
        return f"Too few decode steps for advice on capture_sizes: {steps:,} of {ENOUGH_STEPS}."
    if now - best >= WORTH:
        return (
            f"{now:.1%} of the rows that decode graphs computed are padding; capture_sizes={sizes['best']}, "
            f"with no more graphs, would make it {best:.1%}."
        )
    leaner = next(point for point in sizes["curve"] if point["wasted"] <= now + WORTH / 2)
    if leaner["graphs"] < len(sizes["current"]):
        return (
            f"{leaner['graphs']} graphs in place of {len(sizes['current'])} would do: capture_sizes={leaner['sizes']} "
            f"makes {leaner['wasted']:.1%} of the rows padding, now it is {now:.1%}."
        )
    return f"capture_sizes fit the traffic: {now:.1%} of the rows are padding, {best:.1%} at best."
