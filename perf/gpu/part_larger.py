"""One request at the sizes of Llama-3.2-1B, and of Qwen3-8B where memory and time allow: a token against its floor.

The checkpoints are drawn on the GPU and kept in memory (/dev/shm where there is one) for as long as they are needed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ostinato.perf.checkpoints import Size
from ostinato.perf.gpu.context import LATENCY, PROMPT_TOKENS, Context
from ostinato.perf.gpu.decoding import ms_per_step
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.gpu.weights import LLAMA_1B, QWEN_8B, prepare_on
from ostinato.perf.measure import Summary

STEPS = 48
SECONDS_OF_8B = 75.0  # with writing and compiling
KV_TOKENS = 20_000


def measure(context: Context) -> Finding:
    """A figure per size, and a note on one that was left out."""
    found = _of_size(context, LLAMA_1B, "1b")
    needed = 1.3 * QWEN_8B.num_parameters * 2
    place = _place(needed)
    if context.seconds_left < SECONDS_OF_8B:
        return found.joined(Finding(notes=(f"8B left out: {context.seconds_left:.0f} s were left",)))
    if (free := shutil.disk_usage(place).free) < needed:
        text = f"8B left out: {place} has {free / 1e9:.0f} GB free, it needs {needed / 1e9:.0f}"
        return found.joined(Finding(notes=(text,)))
    return found.joined(_of_size(context, QWEN_8B, "8b"))


def _of_size(context: Context, size: Size, name: str) -> Finding:
    """Percent of the floor, batch 1."""
    context.close_engine()
    place = _place(1.3 * size.num_parameters * 2)
    with tempfile.TemporaryDirectory(prefix="ostinato-gpu-check-", dir=place) as folder:
        context.progress(f"{size.name}: {2 * size.num_parameters / 1e9:.1f} GB of random weights")
        checkpoint = prepare_on(context.device, size, Path(folder))
        llm = context.engine(LATENCY, checkpoint, kv_cache_memory=KV_TOKENS * size.kv_bytes_per_token)
        prompts = [[token % size.vocab_size for token in context.prompt()] for _ in range(context.rounds + 1)]
        times = [ms_per_step(llm, [prompt], STEPS) for prompt in prompts][1:]
        context.close_engine()
    floor = 1e3 * context.floors.decode_seconds(size, 1, PROMPT_TOKENS + STEPS / 2)
    return Finding.of(
        {
            f"larger.percent_of_floor_{name}": Summary.of([100 * floor / value for value in times]),
            f"larger.ms_{name}": Summary.of(times),
            f"larger.ms_floor_{name}": Summary.of([floor]),
        }
    )


def _place(needed: float) -> Path:
    """Memory, where a folder of it has ``needed`` bytes free (a container's often has not); else the disk."""
    memory = Path("/dev/shm")
    fits = memory.is_dir() and shutil.disk_usage(memory).free >= needed
    return memory if fits else Path(tempfile.gettempdir())
