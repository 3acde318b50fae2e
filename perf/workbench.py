"""What the benchmarks of one run share: the checkpoint, an engine and its peer (made when first used), and prompts."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from ostinato import LLM, SamplingParams
from ostinato.perf.checkpoints import Size
from ostinato.perf.peer import TransformersPeer
from ostinato.perf.report import Figure

MAX_NUM_SEQS = 16
PROMPT_TOKENS = 128
KV_TOKENS = 8192


class Workbench:
    """One run's engine at work on a CPU. ``rounds``: how often each contender of a benchmark is measured."""

    def __init__(self, size: Size, folder: Path, *, execution: str = "graph", rounds: int = 6) -> None:
        self.size = size
        self.folder = folder
        self.execution = execution
        self.rounds = rounds
        self._random = random.Random(0)

    @property
    def engine_options(self) -> dict[str, Any]:
        """What every engine of the run is made with; the rest are ostinato's defaults. Can be written as JSON."""
        return {
            "device": "cpu",
            "execution": self.execution,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_model_len": 4096,
            "kv_cache_memory": KV_TOKENS * self.size.kv_bytes_per_token,
        }

    @cached_property
    def llm(self) -> LLM:
        """The engine."""
        self.progress("making the engine")
        return LLM(str(self.folder), **self.engine_options)

    @cached_property
    def peer(self) -> TransformersPeer:
        """What it is compared with."""
        self.progress("loading the peer")
        return TransformersPeer(self.folder)

    def progress(self, doing: str) -> None:
        """Say on standard error what is going on."""
        print(f"  {doing}", file=sys.stderr, flush=True)

    def prompt(self, num_tokens: int = PROMPT_TOKENS) -> list[int]:
        """Tokens that no prompt before began with: no prefix is found for them."""
        return [self._random.randrange(self.size.vocab_size) for _ in range(num_tokens)]

    def seconds_to_first_token(self, prompt: Sequence[int], cached: int = 0) -> float:
        """Time of ``generate`` with one token; ``RuntimeError`` if not ``cached`` tokens came from the prefix index."""
        began = time.perf_counter()
        (output,) = self.llm.generate(list(prompt), greedy(1))
        seconds = time.perf_counter() - began
        if output.num_cached_tokens != cached:
            raise RuntimeError(f"{output.num_cached_tokens:,} prompt tokens came from the prefix index, not {cached:,}")
        return seconds

    def seconds_per_step(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
        """Time of a decode step of all prompts: from the first token to the last, by the steps between.

        By the engine's clock, without the way to the caller. The prompts are queued at once and fit into one step, so
        they decode together.
        """
        outputs = self.llm.generate([list(prompt) for prompt in prompts], greedy(max_tokens))
        if any(len(output.outputs[0].token_ids) != max_tokens for output in outputs):
            raise RuntimeError(f"a request ended before its {max_tokens} tokens")
        times = outputs[0].metrics
        if times is None or times.decode_seconds is None:
            raise RuntimeError("the engine keeps no times")
        return times.decode_seconds / (max_tokens - 1)

    def kept_promises(self) -> list[Figure]:
        """What the engine, if one was made, must not have done while it was measured."""
        if "llm" not in vars(self):
            return []
        stats = self.llm.stats()
        fallbacks = sum(stats.eager_fallbacks.values())
        late = stats.compiles_after_warmup + stats.captures_after_warmup
        return [
            Figure("engine.late_compiles", late, "", 0, "at most", note="compiles and captures after warm-up"),
            Figure("engine.eager_fallbacks", fallbacks, "", 0, "at most", note="steps that ran uncompiled"),
        ]

    def close(self) -> None:
        """Close the engine if one was made."""
        if "llm" in vars(self):
            self.llm.close()

    def __enter__(self) -> Workbench:
        """The workbench itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """``close()``."""
        self.close()


def greedy(max_tokens: int) -> SamplingParams:
    """Exactly ``max_tokens`` tokens, the likeliest each."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
