"""The first token of a prompt of 16k tokens that are cached, against one where nothing is; and the lookup alone."""

from __future__ import annotations

import time

from ostinato.perf.gpu.context import LONG, Context
from ostinato.perf.gpu.engine import greedy, lookup_seconds
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.measure import Summary, interleave

SHARED_TOKENS, OWN_TOKENS = 16_384, 16


def measure(context: Context) -> Finding:
    """The ratio, both times, and the host's time of hashing and lookup."""
    llm = context.engine(LONG)
    shared: list[int] = []

    def first_token(cached: int) -> float:
        prompt = shared + context.prompt(OWN_TOKENS)
        began = time.perf_counter()
        (output,) = llm.generate(prompt, greedy(1))
        milliseconds = 1e3 * (time.perf_counter() - began)
        if (output.num_cached_tokens > 0) != (cached > 0):
            raise RuntimeError(f"{output.num_cached_tokens:,} tokens came from the prefix index, not {cached:,}")
        return milliseconds

    def cold() -> float:
        shared[:] = context.prompt(SHARED_TOKENS)
        return first_token(0)

    values = interleave({"cold": cold, "warm": lambda: first_token(SHARED_TOKENS)}, context.rounds, context.progress)
    size = llm.plan.block_size
    lookups = [1e3 * lookup_seconds(context.prompt(SHARED_TOKENS), size) for _ in range(7)]
    return Finding.of(
        {
            "prefix.speedup": Summary.of_ratio(values["cold"], values["warm"]),
            "prefix.ms_cold": Summary.of(values["cold"]),
            "prefix.ms_warm": Summary.of(values["warm"]),
            "prefix.ms_lookup": Summary.of(lookups),
        },
        (f"lookup: admission of a request of {SHARED_TOKENS:,} cached tokens in blocks of {size}, without a model",),
    )
