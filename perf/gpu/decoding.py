"""Requests that decode together, watched from outside: when each step's tokens reach the caller.

The engine's thread runs the steps of all and waits for no reader; the first stream is the clock of the batch, once it
has been read up to the present.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from ostinato import LLM, SamplingParams
from ostinato.perf.gpu.engine import greedy
from ostinato.perf.gpu.timing import replay_clock

QUIET_STEPS = 3


class Decoding:
    """A batch in the midst of decoding; a context manager that cancels what is left of it.

    ``params`` are the requests' (greedy by default); every request may go on for ``max_tokens``, of which the first
    spends one in every step that computes prompts of the others.
    """

    def __init__(
        self, llm: LLM, prompts: Sequence[Sequence[int]], max_tokens: int, params: SamplingParams | None = None
    ) -> None:
        self._llm = llm
        self._rows = len(prompts)
        self._streams = [llm.stream(list(prompt), params or greedy(max_tokens)) for prompt in prompts]
        self._deltas: Iterator[Any] = iter(self._streams[0])
        self._num_read = 0
        self._settle()

    def step_seconds(self, count: int) -> list[float]:
        """The times between the tokens of the next ``count`` steps; ``RuntimeError`` if one was no decode step."""
        before = self._llm.stats()
        self._catch_up()
        arrivals = [time.perf_counter()]
        for _ in range(count):
            self._advance()
            arrivals.append(time.perf_counter())
        self._check(before, count)
        return [after - earlier for earlier, after in itertools.pairwise(arrivals)]

    def replay_seconds(self, count: int) -> list[float]:
        """GPU time of the graph replays of the next ``count`` steps; ``RuntimeError`` if nothing was replayed."""
        before = self._llm.stats()
        with replay_clock() as clock:
            for _ in range(count):
                self._advance()
        self._check(before, count)
        seconds = clock.seconds()
        if len(seconds) < count:
            raise RuntimeError(f"{count} decode steps replayed {len(seconds)} CUDA graphs")
        return seconds

    def _settle(self) -> None:
        """Go on until every request decodes and the last prompt is some steps ago."""
        quiet, mixed = 0, -1
        while quiet < QUIET_STEPS:
            self._advance()
            stats = self._llm.stats()
            settled = stats.requests_running == self._rows and stats.mixed_steps == mixed
            quiet, mixed = quiet + 1 if settled else 0, stats.mixed_steps

    def _catch_up(self) -> None:
        """Read what came while nobody waited for it, and one token more, which somebody did."""
        request = self._streams[0].ticket.request
        while self._num_read < request.num_generated:
            self._advance()
        self._advance()

    def _advance(self) -> None:
        delta = next(self._deltas, None)
        if delta is None or delta.finished:
            raise RuntimeError(f"a batch of {self._rows} requests ended before it was measured")
        if len(delta.token_ids) != 1:
            raise RuntimeError(f"{len(delta.token_ids)} tokens came at once: there is no time for each step")
        self._num_read += 1

    def _check(self, before: Any, count: int) -> None:
        stats = self._llm.stats()
        mixed = stats.mixed_steps - before.mixed_steps
        if mixed or stats.preemptions != before.preemptions:
            raise RuntimeError(f"{mixed} of {count} steps computed prompts; preemptions went on to {stats.preemptions}")

    def __enter__(self) -> Decoding:
        """The batch itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what is left."""
        for stream in self._streams:
            stream.close()


def ms_per_step(llm: LLM, prompts: Sequence[Sequence[int]], steps: int) -> float:
    """Wall time in ms of a decode step of ``prompts``, the mean over ``steps``."""
    with Decoding(llm, prompts, steps + 64) as batch:
        return 1e3 * statistics.fmean(batch.step_seconds(steps))


def replay_ms(llm: LLM, prompts: Sequence[Sequence[int]], steps: int, params: SamplingParams | None = None) -> float:
    """GPU time in ms of the graph of a decode step of ``prompts``, the median over ``steps``."""
    with Decoding(llm, prompts, steps + 64, params) as batch:
        return 1e3 * statistics.median(batch.replay_seconds(steps))
