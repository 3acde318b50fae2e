"""A prompt of 100,000 tokens in chunks: the time of a token early and late, and the memory beyond weights and cache.

A narrow model (one layer, two heads), so that attention is nearly all there is: a late chunk reads a hundred times the
context of an early one. In a process of its own; the KV cache is written once before, so the peak is activations alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ostinato.perf.bench_memory import resident_bytes
from ostinato.perf.checkpoints import Size
from ostinato.perf.checkpoints import write as write_checkpoint
from ostinato.perf.measure import run_child
from ostinato.perf.report import Figure
from ostinato.perf.workbench import Workbench, greedy

TOKENS, CHUNK = 100_000, 2048
NARROW = Size("narrow", 1000, 64, 128, 1, 2, 1, 32, 131_072, "float32")


def measure(bench: Workbench) -> list[Figure]:
    """Peak memory above the planned bytes, and microseconds a token of the first and of the last chunks."""
    with tempfile.TemporaryDirectory(prefix="ostinato-perf-") as folder:
        write_checkpoint(NARROW, Path(folder))
        bench.progress(f"a prompt of {TOKENS:,} tokens")
        done = run_child(__name__, {"folder": folder}, {})
    early, late = done["us_early"], done["us_late"]
    note = f"a prompt of {TOKENS:,} tokens in chunks of {CHUNK:,}, one narrow layer"
    return [
        Figure("long.peak_mib", done["peak"] / 2**20, "MiB", note=f"memory beyond weights and KV cache: {note}"),
        Figure("long.us_per_token_early", early, "µs", note="a token of the first 10 %"),
        Figure("long.us_per_token_late", late, "µs", note="a token of the last 10 %"),
    ]


def prefill(folder: str) -> dict[str, Any]:
    """One request of ``TOKENS`` tokens; the time of each of its steps."""
    from ostinato import LLM

    with LLM(folder, execution="eager", max_num_seqs=1, max_num_batched_tokens=CHUNK, max_model_len=TOKENS + 2) as llm:
        for layer in llm._core.runner.kv_cache:
            for pages in layer:
                pages.zero_()
        llm.generate([[1] * 8], greedy(1))
        base, seconds, step = resident_bytes("VmRSS"), [], llm._core.step

        def timed() -> None:
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)

        llm._core.step = timed  # type: ignore[method-assign]
        llm.generate([[index % 997 for index in range(TOKENS)]], greedy(1))
        peak = resident_bytes("VmHWM") - base
    tenth = max(1, len(seconds) // 10)
    early, late = (sum(part) / (tenth * CHUNK) * 1e6 for part in (seconds[:tenth], seconds[-tenth - 1 : -1]))
    return {"peak": peak, "us_early": early, "us_late": late, "steps": len(seconds)}


if __name__ == "__main__":
    print(json.dumps(prefill(**json.loads(sys.argv[1]))))
