"""Peak memory of loading and generating, against the bytes that the plan names: weights and KV cache.

In a process of its own: the base is its resident memory after ``import torch`` and one trivial ``torch.compile``; then
an engine with 512 MiB of KV cache is made and generates. The peak is the kernel's own high-water mark (``VmHWM``), so
whatever lives for a moment while loading or compiling counts. The KV cache is planned bytes; its pages become resident
when they are first written, so all are written before the engine generates. Two peaks are taken: after a 128-token
prompt with its decode steps, and after a prompt that fills the largest step (``max_num_batched_tokens``), whose
activations come on top. The compile cache is empty in the first process, when compiling holds most, and full in the
second.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostinato.perf.measure import run_child
from ostinato.perf.report import Figure
from ostinato.perf.workbench import PROMPT_TOKENS, Workbench, greedy

KV_CACHE_BYTES = 512 << 20
LARGEST_STEP = 2048
TARGET = 1.15


def measure(bench: Workbench) -> list[Figure]:
    """The peak with an empty and with a full compile cache, and that of the largest step."""
    options = bench.engine_options | {"kv_cache_memory": KV_CACHE_BYTES}
    with tempfile.TemporaryDirectory(prefix="ostinato-perf-") as cache:

        def run(doing: str) -> dict[str, float]:
            bench.progress(doing)
            return run_child(
                __name__,
                {"model": str(bench.folder), "options": options},
                {"TORCHINDUCTOR_CACHE_DIR": cache},
            )

        empty, full = run("an engine with an empty compile cache"), run("an engine with a full one")
    return [
        _figure("memory.peak_empty_cache", empty, "peak", "an empty compile cache"),
        _figure("memory.peak_full_cache", full, "peak", "a full one"),
        _figure("memory.peak_largest_step", full, "peak_largest_step", f"a {LARGEST_STEP:,}-token step", None),
    ]


def _figure(name: str, sizes: Mapping[str, float], key: str, when: str, target: float | None = TARGET) -> Figure:
    planned, above = sizes["planned"], sizes[key] - sizes["base"]
    sums = f"{above / 2**20:,.0f} MiB above {sizes['base'] / 2**20:,.0f}; planned {planned / 2**20:,.0f}"
    detail = dict(sizes) | {"resident at the end": (sizes["end"] - sizes["base"]) / planned}
    return Figure(name, above / planned, "x", target, "at most", note=f"peak / planned, {when}: {sums}", detail=detail)


def resident_bytes(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")


def load_and_generate(model: str, options: Mapping[str, Any]) -> dict[str, int]:
    """Resident bytes of this process before and after, and the bytes that were planned."""
    import torch

    torch.compile(lambda x: x + 1)(torch.zeros(8))
    base = resident_bytes("VmRSS")
    from ostinato import LLM

    with LLM(model, **options) as llm:
        for layer in llm._core.runner.kv_cache:
            for pages in layer:
                pages.zero_()  # the system counts a page once it was written; an engine at work has written all
        llm.generate([1] * PROMPT_TOKENS, greedy(32))
        peak, end = resident_bytes("VmHWM"), resident_bytes("VmRSS")
        llm.generate([2] * LARGEST_STEP, greedy(2))
        return {
            "base": base,
            "peak": peak,
            "end": end,
            "peak_largest_step": resident_bytes("VmHWM"),
            "planned": llm.plan.weight_bytes + llm.plan.kv_cache_bytes,
        }


if __name__ == "__main__":
    print(json.dumps(load_and_generate(**json.loads(sys.argv[1]))))
