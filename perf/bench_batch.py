"""Tokens a second of 1 to 16 requests that decode together. No target: it shows how throughput grows.

The same prompts return in every round, so that all but the first find most of their prompt in the prefix index: only
decode steps are timed.
"""

from __future__ import annotations

from collections.abc import Sequence

from ostinato.perf.measure import Summary, interleave
from ostinato.perf.report import Figure
from ostinato.perf.workbench import MAX_NUM_SEQS, Workbench

BATCHES = (1, 2, 4, 8, MAX_NUM_SEQS)
TOKENS = 17


def measure(bench: Workbench) -> list[Figure]:
    """A figure per batch size."""
    prompts = [bench.prompt() for _ in range(MAX_NUM_SEQS)]

    def step(batch: Sequence[Sequence[int]]) -> float:
        return bench.seconds_per_step(batch, TOKENS)

    contenders = {str(batch): (lambda batch=batch: step(prompts[:batch])) for batch in BATCHES}
    seconds = interleave(contenders, bench.rounds, bench.progress)
    return [_figure(batch, seconds[str(batch)]) for batch in BATCHES]


def _figure(batch: int, seconds: Sequence[float]) -> Figure:
    rates = Summary.of([batch / second for second in seconds])
    note = f"{batch} at once, {1e3 * batch / rates.median:.1f} ms a step"
    return Figure.of(f"batch.tokens_per_second_{batch}", rates, "1/s", note=note)
