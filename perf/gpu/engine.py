"""All that the check knows of the engine beyond its public API (``LLM``, ``SamplingParams``, ``stats``, ``plan``).

Options that this version of the engine does not have are left out; operators that it does not have raise
``NotMeasurable``.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostinato import LLM, EngineConfig, SamplingParams
from ostinato.perf.gpu.finding import NotMeasurable

LOADING = ("reading the checkpoint", "loading weights")  # phases of a start that are not warm-up
CAPTURING = ("capturing ", " batch sizes")  # how the phase of captures begins and ends


def known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that the engine has."""
    names = inspect.signature(EngineConfig.__init__).parameters
    return {name: value for name, value in options.items() if name in names}


def open_engine(folder: Path, options: Mapping[str, Any]) -> LLM:
    """An engine with as many of ``options`` as it has."""
    return LLM(str(folder), **known(options))


def greedy(max_tokens: int, **others: Any) -> SamplingParams:
    """Exactly ``max_tokens`` tokens, the likeliest each."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **others)


def describe(llm: LLM) -> str:
    """The plan as text: which backend, and why."""
    return str(llm.plan)


def broken_promises(llm: LLM) -> dict[str, int]:
    """What must not have happened while it was measured; those that did, with their number."""
    stats = llm.stats()
    counts = {
        "compiles after warm-up": stats.compiles_after_warmup,
        "captures after warm-up": stats.captures_after_warmup,
        "steps that ran uncompiled": sum(stats.eager_fallbacks.values()),
    }
    return {what: count for what, count in counts.items() if count}


def capture_seconds(phases: Mapping[str, float]) -> float:
    """What a start spent on capturing the graphs of decode steps; ``phases`` is ``llm.startup``."""
    first, last = CAPTURING
    found = [seconds for phase, seconds in phases.items() if phase.startswith(first) and phase.endswith(last)]
    if not found:
        raise NotMeasurable(f"no phase of the start is called '{first}…{last}': {', '.join(phases)}")
    return sum(found)


@contextlib.contextmanager
def logits_of(llm: LLM) -> Iterator[list[Tensor]]:
    """The logits ``[rows, vocab_size]`` that an engine with ``execution="eager"`` computes within, step by step."""
    decoder: Any = llm._core.runner.open_model.decoder
    seen: list[Tensor] = []
    compute = decoder.compute_logits

    def spy(hidden: Tensor) -> Tensor:
        logits: Tensor = compute(hidden)
        seen.append(logits.float().clone())
        return logits

    decoder.compute_logits = spy
    try:
        yield seen
    finally:
        del decoder.compute_logits


def decode_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """The engine's own kernel for one new token a row; shapes as in ``layers.attention.decode``."""
    scale, window, softcap, slopes, sinks = q.shape[-1] ** -0.5, 0, 0.0, None, None
    run = operator("paged_decode")
    attended: Tensor = run(q, k_cache, v_cache, table, lengths, scale, window, softcap, slopes, sinks)
    return attended


def operator(name: str) -> Callable[..., Any]:
    """``torch.ops.ostinato.<name>``; ``NotMeasurable`` where it is not defined or has no CUDA kernel."""
    from ostinato.layers.kernels import attention_ops as _registers_the_operators  # noqa: F401

    found: Callable[..., Any] | None = getattr(torch.ops.ostinato, name, None)
    qualified, keys = f"ostinato::{name}", ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
    if found is None or not any(torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key) for key in keys):
        raise NotMeasurable(f"{qualified} has no kernel for CUDA")
    return found


def lookup_seconds(prompt: Sequence[int], block_size: int) -> float:
    """Hashing ``prompt`` and finding all of it in the prefix index: the admission of a second, equal request."""
    from ostinato.block_pool import BlockPool
    from ostinato.request import Request
    from ostinato.scheduler import Scheduler

    blocks, longest = 2 * len(prompt) // block_size + 8, len(prompt) + 8
    scheduler = Scheduler(BlockPool(blocks, block_size), 2, longest, longest)
    scheduler.add(Request(0, list(prompt), greedy(2)))
    step = scheduler.next_step()
    if step is None:
        raise RuntimeError("the first request was not scheduled")
    scheduler.commit(step, [0])
    request = Request(1, list(prompt), greedy(2))
    began = time.perf_counter()
    scheduler.add(request)
    scheduler.next_step()
    return time.perf_counter() - began
