"""What the host does for a decode step besides launching it: schedule, pack, commit.

The real scheduler and step buffers, with made-up tokens and no model: ``Scheduler.next_step``,
``StepBuffers.pack`` and ``launched``, ``Scheduler.launch`` and ``commit``. Prompts differ in length by a token each, so
that with 16 requests some request fills a block in every step. A lone request fills or begins one in two of sixteen
steps, which the median leaves out: the 95th percentile beside it is such a step.
"""

from __future__ import annotations

import statistics
import time

import torch

from ostinato.block_pool import BlockPool
from ostinato.graphs.streams import HostStream
from ostinato.perf.measure import Summary
from ostinato.perf.report import Figure
from ostinato.perf.workbench import MAX_NUM_SEQS, PROMPT_TOKENS, Workbench, greedy
from ostinato.request import Request
from ostinato.scheduler import Scheduler
from ostinato.step import Step
from ostinato.step_buffers import StepBuffers

STEPS, WARM_UP_STEPS = 2000, 200
BLOCK_SIZE = 16
VOCABULARY = 1_000
TARGETS = {1: 40.0, MAX_NUM_SEQS: 120.0}  # microseconds by requests
PARTS = ("schedule", "pack", "commit")


def measure(bench: Workbench) -> list[Figure]:
    """A figure for one running request and one for sixteen."""
    return [_figure(num_requests, HostWork(num_requests)) for num_requests in TARGETS]


class HostWork:
    """``num_requests`` running requests without a model."""

    def __init__(self, num_requests: int) -> None:
        length = PROMPT_TOKENS + num_requests + WARM_UP_STEPS + STEPS + 2
        blocks = -(-length // BLOCK_SIZE)
        tokens = MAX_NUM_SEQS * (PROMPT_TOKENS + MAX_NUM_SEQS)
        self.scheduler = Scheduler(BlockPool(num_requests * blocks + 1, BLOCK_SIZE), MAX_NUM_SEQS, tokens, length)
        self._stream = HostStream(torch.device("cpu"), emulate=False)
        limits = (MAX_NUM_SEQS, tokens, BLOCK_SIZE, blocks, VOCABULARY)
        self.buffers = StepBuffers(*limits, self._stream, fixed_width=False)
        for number in range(num_requests):
            prompt = [number] * (PROMPT_TOKENS + number)
            self.scheduler.add(Request(number, prompt, greedy(WARM_UP_STEPS + STEPS + 2)))
        self._prefill()

    def _prefill(self) -> None:
        step = self._next_step()
        self._pack(step)
        self.scheduler.commit(step, [0] * len(step.sample_rows))

    def decode(self, token: int) -> tuple[float, float, float]:
        """Run a step; seconds of schedule, pack and commit."""
        began = time.perf_counter()
        step = self._next_step()
        scheduled = time.perf_counter()
        self._pack(step)
        packed = time.perf_counter()
        self.scheduler.commit(step, [token] * len(step.requests))
        return scheduled - began, packed - scheduled, time.perf_counter() - packed

    def _pack(self, step: Step) -> None:
        self.buffers.launched(step, self.buffers.pack(step), self._stream.submit(lambda: None))
        self.scheduler.launch(step)

    def _next_step(self) -> Step:
        step = self.scheduler.next_step()
        if step is None:
            raise RuntimeError("all requests have ended")
        return step


def _figure(num_requests: int, work: HostWork) -> Figure:
    for token in range(WARM_UP_STEPS):
        work.decode(token)
    parts = [work.decode(token) for token in range(STEPS)]
    totals = [1e6 * sum(part) for part in parts]
    columns = zip(PARTS, zip(*parts, strict=True), strict=True)
    medians = {name: 1e6 * statistics.median(column) for name, column in columns}
    shares = ", ".join(f"{name} {value:.1f}" for name, value in medians.items())
    p95 = statistics.quantiles(totals, n=20)[-1]
    return Figure.of(
        f"host.us_{num_requests}",
        Summary.of(totals),
        "µs",
        target=TARGETS[num_requests],
        bound="at most",
        note=f"host work of a step, {num_requests} running: {shares}; 95 % ≤ {p95:.1f}",
        detail={"p95": p95, **medians},
    )
