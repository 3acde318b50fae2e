"""Time to the first token of a prompt that nobody sent before: ids in, id on the host."""

from __future__ import annotations

import time

from ostinato.perf.gpu.context import LATENCY, Context
from ostinato.perf.gpu.engine import greedy
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.measure import Summary, interleave

LENGTHS = (128, 1024)
ROUNDS = 15  # they are short


def measure(context: Context) -> Finding:
    """Milliseconds of ``generate`` with one token, by the prompt's length."""
    llm = context.engine(LATENCY)

    def first_token(length: int) -> float:
        prompt = context.prompt(length)
        began = time.perf_counter()
        llm.generate(prompt, greedy(1))
        return 1e3 * (time.perf_counter() - began)

    contenders = {str(length): (lambda length=length: first_token(length)) for length in LENGTHS}
    values = interleave(contenders, max(ROUNDS, context.rounds), context.progress)
    summaries = {f"ttft.ms_{length}": Summary.of(values[str(length)]) for length in LENGTHS}
    floors = {f"ttft.ms_floor_{length}": Summary.of([1e3 * floor(context, length)]) for length in LENGTHS}
    return Finding.of(summaries | floors)


def floor(context: Context, length: int) -> float:
    """Seconds: the arithmetic of the prompt or one reading of the weights, whichever takes longer."""
    reading = context.size.weight_bytes / context.floors.bandwidth
    return max(reading, context.floors.prefill_seconds(context.size, length))
