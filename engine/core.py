"""One engine's loop: the requests that live, and what turns a step of them into delivered text.

Owns the scheduler, the block pool, the runner and an output processor per request. Decides nothing itself: the
scheduler says what runs, the runner runs it, the processors make text of it. Knows no lock and no thread: one thread
calls it (``EngineThread``). Only ``check_alive`` and ``scheduler.check_fits`` may be called from others.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ostinato.block_pool import BlockPool
from ostinato.layers.errors import ConfigError, EngineAsleep, EngineDead, OstinatoError
from ostinato.metrics import Metrics, RequestMetrics
from ostinato.output_processor import OutputProcessor
from ostinato.outputs import FinishReason
from ostinato.plan import Plan
from ostinato.request import Request, RequestStatus, end_if_due, has_ended
from ostinato.runner import Flight, StepRunner
from ostinato.scheduler import Scheduler
from ostinato.stats import Stats
from ostinato.step import Step

if TYPE_CHECKING:
    from ostinato.step_timeline import StepTimeline


class StepFault(OstinatoError):
    """A step raised; every request that took part in it has ended, and the cause is chained."""


class EngineCore:
    """Requests go in with ``add``, ``step`` advances all of them, and their processors hold what came out."""

    def __init__(self, plan: Plan, runner: StepRunner) -> None:
        self.plan = plan
        self.runner = runner
        self.closed = False
        self.asleep = False  # the KV memory is given back
        self.counts: Counter[str] = Counter()
        self.batches: Counter[int] = Counter()  # decode steps by rows
        self.recorded = RequestMetrics()
        self.timeline: StepTimeline | None = None
        self.at_work: Step | None = None  # the step being launched or brought in
        self._unsound = False  # a recovery has begun and not ended
        self._dead: EngineDead | None = None
        self._live: dict[int, Request] = {}  # requests that have not ended, or whose end was not delivered yet
        self._processors: dict[int, OutputProcessor] = {}
        self._flights: deque[tuple[Step, Flight]] = deque()  # launched steps, oldest first
        self._timed: dict[int, Request] = {}  # the live ones with a deadline
        self._new_scheduler()

    def add(self, request: Request, processor: OutputProcessor) -> None:
        """Queue ``request``; refused, with nothing kept, if it can never run (``PromptTooLong``, ``OutOfBlocks``)."""
        self.check_awake()
        if self._unsound:
            self._recover()
        for member, its in zip(request.group, processor.group, strict=True):
            self.scheduler.add(member)
            self._processors[member.request_id] = its
            self._live[member.request_id] = member
            if member.deadline < math.inf:
                self._timed[member.request_id] = member

    def is_live(self, request: Request) -> bool:
        """Whether more may come of ``request``."""
        return any(member.request_id in self._live for member in request.group)

    @property
    def is_busy(self) -> bool:
        """Whether there is something to do: a request lives, and the engine is awake."""
        return bool(self._live) and not self.asleep

    def processor(self, request: Request) -> OutputProcessor | None:
        """What holds the text of ``request``, until it is released or aborted."""
        return self._processors.get(request.request_id)

    def release(self, request: Request) -> OutputProcessor:
        """Hand over the processor of a request that has ended."""
        for member in request.followers:
            self._processors.pop(member.request_id)
        return self._processors.pop(request.request_id)

    def step(self) -> None:
        """Launch what can be launched, then bring in the oldest step. A fault ends its step's requests, and raises.

        Where the device works on its own, the step after the oldest is on its way before the oldest is waited for.
        ``StepFault`` with its cause; it ends all requests if no step was at work. ``EngineDead`` if the device is
        beyond use: every request has ended then. An interrupt ends nothing: the next step takes up where this one was.
        """
        self.check_awake()
        self.at_work = None
        try:
            if self._unsound:
                self._recover()  # an interrupt struck the last attempt
            self._deliver()  # what an interrupted step left
            self._end_overdue()
            if self.timeline is None:
                self._advance()
            else:
                self.timeline.record(self._advance)
        except EngineDead:
            raise
        except BaseException as error:
            step = self.at_work
            self._recover()
            if isinstance(error, KeyboardInterrupt):
                raise
            ended = list(self._live.values()) if step is None else step.requests
            fault = StepFault(f"a step of {len(ended)} requests failed: {type(error).__name__}: {error}")
            fault.__cause__ = error
            for request in ended:
                self.scheduler.finish(request, "error", error=fault)
            self._deliver()
            raise fault from error

    def _advance(self) -> None:
        self._launch_ahead()
        if self._flights:
            self._bring_in()
        self._deliver()

    def _launch_ahead(self) -> None:
        """Launch steps until there is none, or as many are in flight as may be.

        Before the runner has to compile anew it brings everything home: compiling forgets what the device knows.
        """
        while not (self._flights and self.runner.must_compile) and (step := self.scheduler.next_step()) is not None:
            self.at_work = step
            flight = self.runner.launch(step)
            self.scheduler.launch(step)
            self._flights.append((step, flight))
            self.at_work = None
            self._note_launch(step)

    def _note_launch(self, step: Step) -> None:
        self.recorded.step(len(step.requests))
        now = time.monotonic()
        for request in step.requests:
            self.recorded.scheduled(request.clock, now, request.num_prompt_tokens)

    def _bring_in(self) -> None:
        step, flight = self._flights[0]
        self.at_work = step
        tokens = self.runner.collect(flight)
        self._flights.popleft()
        sampled = self.scheduler.commit(step, tokens)
        self.at_work = None
        self.counts["steps"] += 1
        if step.is_decode:
            self.batches[len(step.requests)] += 1
        else:
            self.counts["mixed_steps"] += 1
        self.counts["tokens_computed"] += step.num_tokens
        self.counts["tokens_generated"] += len(sampled)
        now = time.monotonic()
        for request in sampled:
            self.recorded.token(request.clock, now)

    def end(self, request: Request, reason: FinishReason) -> None:
        """End ``request`` where it is, and give its blocks back; no effect if it has ended."""
        for member in request.group:
            if member.request_id in self._live:
                self.scheduler.finish(member, reason)
                self._deliver_one(member)

    def _end_overdue(self) -> None:
        """End what is past its deadline, running or waiting."""
        if self._timed:
            now = time.monotonic()
            for request in [request for request in self._timed.values() if request.deadline <= now]:
                self.end(request, "timeout")

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no running request holds."""
        self.check_alive()
        self.pool.reset_prefix_cache()

    def sleep(self) -> None:
        """Give the KV memory back until ``wake``: who ran waits, to be computed again. ``ConfigError`` if it cannot."""
        self.check_alive()
        if not self.asleep:
            self._recover()
            self.scheduler.preempt_all()
            self.pool.reset_prefix_cache()
            self.asleep = True
            try:
                self.runner.release_pages()
            except ConfigError:
                self.asleep = False
                raise

    def wake(self) -> None:
        """Take the KV memory again, and go on; ``ConfigError`` if there is too little, and the engine sleeps on."""
        self.check_alive()
        self.runner.restore_pages()
        self.asleep = False

    def check_awake(self) -> None:
        """Raise ``EngineAsleep`` between ``sleep`` and ``wake``; and as ``check_alive`` does."""
        self.check_alive()
        if self.asleep:
            raise EngineAsleep("the engine is asleep, its KV memory given back: wake() takes it again")

    def close(self) -> None:
        """End all requests and free graphs, KV cache and weights. Again: no effect."""
        if self.closed:
            return
        self.closed = True
        try:
            self._end_all("abort", None)
        finally:
            self.runner.close()

    def check_alive(self) -> None:
        """Raise ``EngineDead`` after ``close``, and after a fault that the device did not survive (its cause)."""
        if self.closed:
            raise EngineDead("the engine is closed")
        if self._dead is not None:
            raise EngineDead(str(self._dead)) from self._dead.__cause__

    def die(self, error: BaseException) -> EngineDead:
        """What no step can be blamed for: nothing counts any more. Returns the error that all calls end with now."""
        self._dead = EngineDead(f"the engine failed: {type(error).__name__}: {error}")
        self._dead.__cause__ = error
        self._live.clear()
        self._timed.clear()
        self._processors.clear()
        return self._dead

    def _end_all(self, reason: FinishReason, error: OstinatoError | None) -> None:
        for request in list(self._live.values()):
            self.scheduler.finish(request, reason, error=error)
        self._deliver()

    def _recover(self) -> None:
        """After a step that did not end: nothing on the device counts, and the books must balance.

        An interrupt may strike here too: the next step begins anew with this. A device that cannot even be waited for
        is beyond use, and ends every request with ``EngineDead``.
        """
        self._unsound = True
        self._flights.clear()
        try:
            self.runner.drop_steps()
        except Exception as error:
            self._dead = EngineDead(f"the device is beyond use: {type(error).__name__}: {error}")
            self._dead.__cause__ = error
            self._end_all("error", self._dead)
            raise self._dead from error
        if not self._books_balance():
            self._rewrite_books()
        self._unsound = False

    def _books_balance(self) -> bool:
        """Whether every request that has not ended is in the scheduler's hands, and none that should have."""
        unfinished = {request for request in self._live.values() if request.status is not RequestStatus.FINISHED}
        try:
            self.scheduler.drop_in_flight()
            self.scheduler.check()
        except Exception:
            return False
        held = {*self.scheduler.running, *self.scheduler.waiting}
        return held == unfinished and not any(has_ended(request) for request in unfinished)

    def _rewrite_books(self) -> None:
        """An interrupt may strike between any two lines of the scheduler: begin it anew.

        Every request that has not ended goes back to waiting, in order, and its blocks are computed again.
        """
        self._new_scheduler()
        for request in sorted(self._live.values(), key=lambda request: request.request_id):
            if request.status is not RequestStatus.FINISHED:
                request.restart()
                if not end_if_due(request):
                    self.scheduler.add(request)

    def _new_scheduler(self) -> None:
        config, plan = self.plan.config, self.plan
        self._flights.clear()
        self.pool = BlockPool(plan.num_blocks, plan.block_size, config.enable_prefix_caching)
        self.scheduler = Scheduler(
            self.pool,
            config.max_num_seqs,
            config.max_num_batched_tokens,
            plan.max_model_len,
            plan.window,
            self.runner.max_in_flight,
        )

    def _deliver(self) -> None:
        """Bring every generated token to its output processor, and finish those whose request has ended."""
        for request in list(self._live.values()):
            self._deliver_one(request)

    def _deliver_one(self, request: Request) -> None:
        processor = self._processors[request.request_id]
        try:
            for token in processor.unpushed:
                stop_string = processor.push(token)
                if stop_string is not None:
                    self.scheduler.finish(request, "stop", stop_string)
                    break
        except Exception as error:  # a tokenizer's fault is that request's alone
            fault = OstinatoError(f"request {request.request_id}: its text could not be made: {error!r}")
            fault.__cause__ = error
            self.scheduler.finish(request, "error", error=fault)
        if request.status is RequestStatus.FINISHED:
            processor.finish()
            self._note_end(request)
            del self._live[request.request_id]
            self._timed.pop(request.request_id, None)

    def _note_end(self, request: Request) -> None:
        reason, now = str(request.finish_reason), time.monotonic()
        self.recorded.ended(request.clock, now, reason, request.num_prompt_tokens, request.num_generated)

    def metrics(self) -> Metrics:
        """What was done for requests, now."""
        return Metrics.of(self.stats(), self.recorded)

    def stats(self) -> Stats:
        """The counters now."""
        self.check_alive()
        runner, pool, scheduler = self.runner, self.pool, self.scheduler
        counts = self.counts
        late_compiles, late_captures = runner.late
        return Stats(
            steps=counts["steps"],
            mixed_steps=counts["mixed_steps"],
            tokens_computed=counts["tokens_computed"],
            tokens_generated=counts["tokens_generated"],
            batch_histogram=dict(sorted(self.batches.items())),
            capture_sizes=runner.graphs.decode.sizes,
            replays=served(runner.graphs.decode.replays),
            prefill_replays=served(runner.graphs.prefill.replays),
            padding_rows=runner.counts["padding_rows"],
            steps_without_graph=dict(runner.graphs.not_served),
            eager_fallbacks=runner.fallbacks,
            eager_breaks=runner.graphs.breaks,
            launches_held_back=scheduler.num_held_back,
            preemptions=scheduler.num_preemptions,
            prefix_queries=pool.queries,
            prefix_hits=pool.hits,
            evictions=pool.evictions,
            blocks_free=pool.num_free,
            blocks_cached=pool.num_cached,
            blocks_used=pool.num_used,
            requests_running=scheduler.num_running,
            requests_waiting=scheduler.num_waiting,
            compiles=runner.compiles,
            captures=runner.graphs.captures,
            graph_bytes=runner.graph_bytes,
            compiles_after_warmup=late_compiles,
            captures_after_warmup=late_captures,
        )


def served(replays: Mapping[int, int]) -> dict[int, int]:
    """Replays by size, sizes without one left out."""
    return {size: count for size, count in replays.items() if count}
