"""nano-vllm's benchmark: 256 requests of 100 to 1,024 random tokens in and out, temperature 0.6, no prefix shared.

https://github.com/GeeeekExplorer/nano-vllm/blob/main/bench.py: one ``random.seed(0)``, first every prompt, then every
output length. Outputs are cut to a fraction where the whole would take too long; the floor is that of what ran.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from ostinato import LLM, SamplingParams
from ostinato.perf.gpu.context import WIDE, Context
from ostinato.perf.gpu.finding import Finding

REQUESTS, SHORTEST, LONGEST = 256, 100, 1024
MOST_SECONDS = 60.0
PROBE_TOKENS = 24


def measure(context: Context) -> Finding:
    """Tokens out a second, and their share of what the floor allows."""
    llm = context.engine(WIDE)
    prompts, outputs = workload()
    prompts = [[token % context.size.vocab_size for token in prompt] for prompt in prompts]
    expected = _expected_seconds(llm, prompts, outputs)
    fraction = min(1.0, min(MOST_SECONDS, 0.8 * context.seconds_left) / expected)
    lengths = [max(1, int(fraction * out)) for out in outputs]
    context.progress(f"about {fraction * expected:.0f} s: {sum(lengths):,} tokens out")
    seconds = _seconds(llm, prompts, lengths)
    ins_and_outs = [(len(prompt), out) for prompt, out in zip(prompts, lengths, strict=True)]
    floor = context.floors.workload_seconds(context.size, ins_and_outs)
    rate = sum(lengths) / seconds
    scaled = "" if fraction == 1 else f", outputs cut to {100 * fraction:.0f} % (the whole would take {expected:.0f} s)"
    return Finding(
        {
            "throughput.tokens_per_second": rate,
            "throughput.tokens_per_second_floor": sum(lengths) / floor,
            "throughput.percent_of_floor": 100 * floor / seconds,
        },
        (
            f"{sum(map(len, prompts)):,} tokens in, {sum(lengths):,} out in {seconds:.1f} s{scaled}; one run",
            "the floor: the arithmetic of all prompts, then all requests decoding at once until each has ended",
            "the same scheduler in nano-vllm's manner is not measured: the engine has no such mode",
        ),
    )


def workload() -> tuple[list[list[int]], list[int]]:
    """Prompts and output lengths: 142,827 tokens in, 133,966 out."""
    draw = random.Random(0)
    prompts = [[draw.randint(0, 10_000) for _ in range(draw.randint(SHORTEST, LONGEST))] for _ in range(REQUESTS)]
    return prompts, [draw.randint(SHORTEST, LONGEST) for _ in range(REQUESTS)]


def _expected_seconds(llm: LLM, prompts: Sequence[Sequence[int]], outputs: Sequence[int]) -> float:
    """From a short run: prompts once, then as many steps as the longest output has, each as slow as the first."""
    prefill = _seconds(llm, prompts, [1] * len(prompts))
    probe = _seconds(llm, prompts, [PROBE_TOKENS] * len(prompts))
    return prefill + max(0.0, probe - prefill) / (PROBE_TOKENS - 1) * max(outputs)


def _seconds(llm: LLM, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    params = [
        SamplingParams(temperature=0.6, max_tokens=length, ignore_eos=True, enable_prefix_caching=False)
        for length in lengths
    ]
    began = time.perf_counter()
    llm.generate([list(prompt) for prompt in prompts], params)
    return time.perf_counter() - began
