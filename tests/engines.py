"""What tests of whole engines share: tiny checkpoints, the reference's tokens, and a look inside a running engine."""

from __future__ import annotations

import dataclasses
import functools
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostinato import LLM, SamplingParams
from tiny_checkpoints import build

GREEDY = SamplingParams(temperature=0, max_tokens=24)


@functools.cache
def checkpoint(variant: str) -> tuple[Path, Any]:
    """A folder with the variant's checkpoint, and the transformers model that wrote it; once per process."""
    folder = Path(tempfile.mkdtemp(prefix=f"ostinato-{variant}-"))
    return folder, build(variant, folder)


def engine(variant: str, **options: Any) -> LLM:
    """A small engine over a variant's checkpoint: fp32, eager unless told otherwise, its books checked at each step."""
    settings = {"device": "cpu", "execution": "eager", "max_num_seqs": 4, "max_model_len": 128, "block_size": 4}
    return checked(LLM(checkpoint(variant)[0], **(settings | options)))


def prompts(count: int, *, seed: int = 0, longest: int = 30) -> list[list[int]]:
    """Random prompts of different lengths; the first has one token."""
    draw = random.Random(seed)
    lengths = [1, *(draw.randint(2, longest) for _ in range(count - 1))]
    return [[draw.randrange(112) for _ in range(length)] for length in lengths]


def reference_tokens(variant: str, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers generates, greedily: a plain loop over its whole forward pass."""
    return list(_reference(variant, tuple(prompt), count))


@functools.cache
def _reference(variant: str, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    model = checkpoint(variant)[1]
    ids = torch.tensor([prompt])
    with torch.no_grad():  # the mask is given: transformers would take token 0 for padding
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0
        )
    return tuple(out[0, len(prompt) :].tolist())


def reference_logits(variant: str, tokens: Sequence[int]) -> Tensor:
    """The reference's logits after each token: ``[tokens, vocab_size]``."""
    with torch.no_grad():
        logits: Tensor = checkpoint(variant)[1](torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return logits


def token_ids(outputs: Sequence[Any]) -> list[list[int]]:
    """The generated tokens of each output."""
    return [output.outputs[0].token_ids for output in outputs]


def checked(llm: LLM) -> LLM:
    """The engine, with every invariant of its scheduler and block pool checked after each step."""
    core, step = llm._core, llm._core.step  # not the LLM: the engine must not lead to it

    def step_and_check() -> None:
        step()
        core.scheduler.check()

    core.step = step_and_check  # type: ignore[method-assign]
    return llm


def paced(llm: LLM) -> threading.Semaphore:
    """From now on the engine runs as many steps as the semaphore is released; whatever else is asked it serves."""
    step, allowed = llm._core.step, threading.Semaphore(0)

    def step_if_allowed() -> None:
        if allowed.acquire(timeout=0.002):
            step()

    llm._core.step = step_if_allowed  # type: ignore[method-assign]
    return allowed


@contextmanager
def held(llm: LLM) -> Iterator[None]:
    """Within, the engine's thread stands between two steps: what is submitted meanwhile begins together."""
    standing, leave = threading.Event(), threading.Event()

    def stand() -> None:
        standing.set()
        leave.wait()

    with llm._engine._lock:
        llm._engine._post(stand)
    standing.wait()
    try:
        yield
    finally:
        leave.set()


@contextmanager
def ctrl_c_when(condition: Callable[[], bool]) -> Iterator[None]:
    """A SIGINT for the main thread once ``condition`` holds: KeyboardInterrupt, whatever the process does with it.

    Again after a second, as people press it: one that strikes just before a lock is waited for is seen after the wait.
    """
    latest, struck = time.monotonic() + 60, threading.Event()

    def strike() -> None:
        while not condition() and time.monotonic() < latest:
            pass
        while not struck.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            struck.wait(1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    striker = threading.Thread(target=strike)
    striker.start()
    try:
        yield
    finally:
        struck.set()
        striker.join()
        signal.signal(signal.SIGINT, before)


def preempt_before_each_step(llm: LLM) -> None:
    """Let the newest running request give way before each step, unless it is alone."""
    step = llm._core.step

    def preempt_and_step() -> None:
        if llm._core.scheduler.num_running > 1:
            llm._core.scheduler._preempt_last()
        step()

    llm._core.step = preempt_and_step  # type: ignore[method-assign]


def poison_before_each_step(llm: LLM, value: float) -> None:
    """Fill what padding rows read: the null block, their last token, the unused part of the output."""
    step = llm._core.step

    def poison_and_step() -> None:
        for keys, values in llm._core.runner.kv_cache:
            keys[0].fill_(value)
            values[0].fill_(value)
        state = llm._core.runner.buffers.state
        state.last_token[-1] = 11
        state.out.fill_(11)
        step()

    llm._core.step = poison_and_step  # type: ignore[method-assign]


@contextmanager
def recorded_logits(llm: LLM) -> Iterator[list[Tensor]]:
    """The logits of every row that sampled, one tensor per step; for engines that run uncompiled and without graphs."""
    seen: list[Tensor] = []
    pieces = llm._core.runner.pieces
    kept = pieces._single

    def head(*args: Any) -> Tensor:
        seen.append(kept.head(*args).clone())
        return seen[-1]

    pieces._single = pieces._rows = dataclasses.replace(kept, head=head)
    try:
        yield seen
    finally:
        pieces._single = pieces._rows = kept
