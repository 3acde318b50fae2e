"""What top-p, and top-k with top-p, add to the GPU time of a greedy step's graph; one request."""

from __future__ import annotations

from typing import Any

from ostinato import SamplingParams
from ostinato.perf.gpu.context import LATENCY, PROMPT_TOKENS, Context
from ostinato.perf.gpu.decoding import replay_ms
from ostinato.perf.gpu.engine import greedy
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.measure import Summary, interleave

STEPS = 48
LENGTH: dict[str, Any] = {"max_tokens": STEPS + 64, "ignore_eos": True, "seed": 1}


def measure(context: Context) -> Finding:
    """Microseconds over greedy at batch 1."""
    return extra_time(context, LATENCY, 1, "sampling")


def extra_time(context: Context, options: dict[str, Any], rows: int, name: str) -> Finding:
    """Microseconds over greedy for ``rows`` requests that decode together."""
    llm = context.engine(options)
    prompts = [context.prompt(PROMPT_TOKENS) for _ in range(rows)]
    kinds = {
        "greedy": greedy(STEPS + 64),
        "top_p": SamplingParams(temperature=1.0, top_p=0.9, **LENGTH),
        "filtered": SamplingParams(temperature=1.0, top_k=50, top_p=0.9, **LENGTH),
    }
    contenders = {
        kind: (lambda params=params: replay_ms(llm, prompts, STEPS, params)) for kind, params in kinds.items()
    }
    values = interleave(contenders, context.rounds, context.progress)
    extra = {
        kind: Summary.of([1e3 * (value - base) for value, base in zip(values[kind], values["greedy"], strict=True)])
        for kind in ("top_p", "filtered")
    }
    figures = {f"{name}.us_{kind}": summary for kind, summary in extra.items()}
    return Finding.of(figures | {f"{name}.ms_greedy": Summary.of(values["greedy"])})
