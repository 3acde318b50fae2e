"""Many requests at 2k context: a step against its floor; and every capture size against the next larger one."""

from __future__ import annotations

import itertools

from ostinato import LLM
from ostinato.perf.gpu.context import PROMPT_TOKENS, WIDE, Context
from ostinato.perf.gpu.decoding import Decoding, replay_ms
from ostinato.perf.gpu.engine import greedy
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.measure import Summary

BATCHES = (16, 64, 256)
CONTEXT = 2048
STEPS, ROUNDS = 24, 5
SIZE_STEPS = 12


def measure(context: Context) -> Finding:
    """Shares of the floor, then the sizes."""
    llm = context.engine(WIDE)
    held = llm.plan.kv_cache_bytes // llm.plan.kv_bytes_per_token // (CONTEXT + STEPS * ROUNDS + 128)
    batches = [batch for batch in BATCHES if batch <= held]
    prompts = [context.prompt(CONTEXT) for _ in range(max(batches))]
    found = Finding()
    for batch in batches:
        context.progress(f"{batch} requests of {CONTEXT:,} tokens")
        found = found.joined(_at_batch(context, llm, prompts[:batch]))
    context.progress("every capture size")
    return found.joined(_sizes(context, llm))


def _at_batch(context: Context, llm: LLM, prompts: list[list[int]]) -> Finding:
    """Wall time of a step; the floor is that of the mean context while it was measured."""
    batch = len(prompts)
    llm.generate(prompts, greedy(1))  # from now on the prompts are cached: all begin to decode at once
    with Decoding(llm, prompts, STEPS * ROUNDS + 64) as decoding:
        steps = [1e3 * sum(decoding.step_seconds(STEPS)) / STEPS for _ in range(ROUNDS)]
    floor = 1e3 * context.floors.decode_seconds(context.size, batch, CONTEXT + STEPS * ROUNDS / 2)
    return Finding.of(
        {
            f"batch.percent_of_floor_{batch}": Summary.of([100 * floor / value for value in steps]),
            f"batch.ms_{batch}": Summary.of(steps),
            f"batch.ms_floor_{batch}": Summary.of([floor]),
        }
    )


def _sizes(context: Context, llm: LLM) -> Finding:
    """GPU time of every size's graph, all its rows in use; the worst ratio of a size to the next larger."""
    sizes = llm.plan.capture_sizes
    prompts = [context.prompt(PROMPT_TOKENS) for _ in range(sizes[-1])]
    times = {size: replay_ms(llm, prompts[:size], SIZE_STEPS) for size in sizes}
    ratios = {size: times[size] / times[larger] for size, larger in itertools.pairwise(sizes)}
    worst = max(ratios, key=lambda size: ratios[size])
    note = f"worst size: {worst}; ms by size: " + ", ".join(f"{size}: {ms:.3f}" for size, ms in times.items())
    return Finding.of({"batch.worst_size_ratio": Summary.of([ratios[worst]])}, (note,), ms_by_size=times)
