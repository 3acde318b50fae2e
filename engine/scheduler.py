"""What runs next: which requests are admitted, how many tokens each gets, who gives way, and when a request ends.

Owns the waiting and running requests, their blocks (through `BlockPool`) and their row slots; the only writer of a
`Request`. Knows integers only: no tensor, no model, no text. Stop strings are found elsewhere and arrive by `finish`.
Not thread-safe: the engine's thread alone calls it, but for `check_fits`.

One idea: there is no prefill and no decode. A request has tokens it has not computed; `next_step` gives each running
request some of them within a budget, and `commit` takes note that they were computed. A step that failed is dropped by
not committing it: `next_step` changes nothing about what is computed.

Steps may be launched ahead: after `launch` the next step may be asked for although the tokens of the last one are not
known yet. Every request is then taken to go on; one that turns out to have ended has a row too many in the steps in
flight, whose token `commit` ignores. What such a row reads or writes does no harm: steps run in the order of their
launch, so whoever gets its blocks or its slot writes them later. A request that the steps in flight bring to its
``max_length`` gets no further row. Where what a request may draw depends on a token in flight, or somebody would have
to be preempted, `next_step` returns None, and after the `commit` of what is in flight the next call sees what is left.

* ``running`` and ``waiting`` are each in order of rank: priority, then arrival (`Request.rank`). Whoever is first in
  line is admitted first; nobody is preempted for somebody who waits. Where all priorities are equal, ``running``
  followed by ``waiting`` is in order of arrival. Below, "first" and "last" are by rank.
* A running request holds blocks for all tokens it has, taken at admission; it asks for another one only where a new
  token crosses a block boundary, and then the last request gives way: the first always progresses.
* With a ``window`` it holds the blocks of ``[c - window + 1, c + n)`` only, c tokens computed and n given. It takes
  them as it is given tokens, at least one and as many as there are blocks for; `commit` gives back those left behind.
* A request is admitted into what the budget leaves once all others are served, and the budget is at least one token
  for each: so at most the one admitted last has a chunk cut short, and every running request has a row in every step,
  but for those that end in flight. (If blocks cut it short then none is left to admit another.) Only when steps in
  flight were dropped may some leave nothing for others, for some steps.
* A request is taken only if it fits into the empty pool, so the first in line is admitted once nothing runs. One that
  follows another of the same prompt waits until that one has computed it, and so do those behind.
"""

from __future__ import annotations

from bisect import insort_left, insort_right
from collections import deque
from collections.abc import Sequence

from ostinato.block_pool import NULL_BLOCK, ROOT, BlockPool, extend_chain
from ostinato.layers.errors import ConfigError, NonFiniteLogits, OstinatoError, OutOfBlocks, ParamError, PromptTooLong
from ostinato.outputs import FinishReason, StopReason
from ostinato.request import Request, RequestStatus, ending
from ostinato.scheduler_invariants import problems
from ostinato.step import Step
from ostinato.window import blocks_behind, blocks_for, blocks_to_progress

RUNNING = RequestStatus.RUNNING


class Scheduler:
    """Decides the steps of at most ``max_num_seqs`` running requests, ``max_num_batched_tokens`` tokens a step.

    ``window``: tokens that the widest layer sees, None if one sees all. ``max_in_flight``: steps that may be launched
    and not committed. Raises ConfigError if a step could not hold one token of every running request.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        window: int | None = None,
        max_in_flight: int = 1,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            limits = f"max_num_batched_tokens is {max_num_batched_tokens:,}, max_num_seqs {max_num_seqs:,}"
            raise ConfigError(f"a step must hold one token of every running request: {limits}")
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.window = window
        self.max_in_flight = max_in_flight
        self.num_preemptions = 0
        self.num_held_back = 0  # launches that waited for tokens on which the next ones depend
        self.waiting: list[Request] = []  # first in line first
        self.running: list[Request] = []  # the one that gives way last first
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))  # a stack
        self._num_admissions = 0
        self._handed_out: Step | None = None  # neither launched nor committed yet
        self.in_flight: deque[Step] = deque()  # launched, oldest first
        self._refused: tuple[Request, int] | None = None  # who did not fit, and the pool's version then

    @property
    def num_waiting(self) -> int:
        """Requests submitted or preempted, without blocks."""
        return len(self.waiting)

    @property
    def num_running(self) -> int:
        """Requests admitted, with blocks and a row slot."""
        return len(self.running)

    @property
    def has_work(self) -> bool:
        """Whether anybody has not ended: with nothing in flight, `next_step` would return a step."""
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue a request behind those of its priority; raises as `check_fits` does, and keeps nothing then."""
        self.check_fits(request)
        insort_right(self.waiting, request, key=Request.rank)

    def check_fits(self, request: Request) -> None:
        """Raise ParamError, PromptTooLong or OutOfBlocks if it can never run; lower its ``max_length`` to the model's.

        Any thread may call it: it reads what never changes.
        """
        num_prompt_tokens, limit = request.num_prompt_tokens, self.max_model_len
        if num_prompt_tokens == 0:
            raise ParamError("the prompt has no tokens")
        if num_prompt_tokens >= limit:
            room = f"max_model_len is {limit:,}, which must leave room for one generated token"
            raise PromptTooLong(f"the prompt has {num_prompt_tokens:,} tokens; {room}")
        max_length = min(request.max_length, limit)
        needed = self._blocks_to_progress(max_length - 1)  # the last token is never computed
        usable = self.pool.num_blocks - 1
        if needed > usable:
            size = f"{usable:,} of {self.pool.block_size} tokens"
            tokens = f"{max_length:,} tokens" + (f", seen {self.window:,} at a time," if self.window else "")
            raise OutOfBlocks(f"{tokens} need {needed:,} KV blocks; the cache has {size}")
        request.max_length = max_length

    # A step: blocks for what runs, then rows, then whoever is next in line.

    def next_step(self) -> Step | None:
        """The next tokens of every running request, then newly admitted ones; None when there is nothing to do.

        Replaces a step that was neither launched nor committed: it counts as never executed. With steps in flight, None
        may also mean that what follows depends on their tokens.
        """
        self._handed_out = None
        if len(self.in_flight) == self.max_in_flight:
            return None
        if self._awaits_tokens():
            self.num_held_back += 1
            return None
        if not (self._extend_tables() if self.window is None else self._extend_windows()):
            return None
        decodes: list[Request] = []
        chunks: list[Request] = []
        for request in self.running:
            if not request.num_pending or not self._ends_in_flight(request):
                remaining = len(request.token_ids) + request.num_pending - request.num_scheduled_tokens
                (decodes if remaining == 1 else chunks).append(request)
        chunks.sort(key=_admission)  # who was begun first goes on first
        if self.waiting:
            self._admit_within_budget(decodes, chunks)
        self._handed_out = self._make_step(decodes, chunks) if decodes or chunks else None
        return self._handed_out

    def launch(self, step: Step) -> None:
        """Note that ``step``, the one handed out last, is on its way: the next one may be asked for."""
        if step is not self._handed_out:
            raise ValueError("only the step handed out last can be launched, and only once")
        self._handed_out = None
        self.in_flight.append(step)
        for request, count in zip(step.requests, step.counts, strict=True):
            request.num_scheduled_tokens += count
        for row in step.sample_rows:
            step.requests[row].num_pending += 1

    def drop_in_flight(self) -> None:
        """Nothing of the steps in flight counts: what they were to compute is computed again."""
        self._handed_out = None
        self.in_flight.clear()
        for request in self.running:
            request.num_scheduled_tokens = request.num_computed_tokens
            request.num_pending = 0
            covered = request.num_tokens if self.window is None else request.num_computed_tokens
            needed = self._blocks_for(covered)  # the tokens that nobody saw may have had one more
            self.pool.release(request.block_ids[needed:])
            del request.block_ids[needed:]

    def _awaits_tokens(self) -> bool:
        """Whether a token in flight says what its request may draw next."""
        waiting = (request for request in self.running if request.num_pending and request.awaits_tokens)
        return not all(map(self._ends_in_flight, waiting))

    @staticmethod
    def _ends_in_flight(request: Request) -> bool:
        """Whether a step in flight samples the last token that the request may have."""
        return request.num_pending > 0 and request.num_tokens >= request.max_length

    def _extend_tables(self) -> bool:
        """A block for every token that crosses a boundary, in order of rank; the last gives way.

        Whoever gave way left fewer blocks than it would need, so it does not come back in the same step. False if
        somebody would have to give way while steps are in flight.
        """
        size = self.pool.block_size
        for request in self.running:  # may shrink from its end, at or behind this request: iteration goes by index
            held = len(request.block_ids) * size
            if len(request.token_ids) + request.num_pending > held and not self._ends_in_flight(request):
                missing = blocks_for(request.num_tokens, size) - len(request.block_ids)
                if not self._make_room(request, missing):
                    return False
                if request.status is RUNNING:
                    request.block_ids += self.pool.allocate(missing)
        return True

    def _extend_windows(self) -> bool:
        """The same under a window: a block for each request's next token, then for chunks as far as there are any.

        Alone, a request finds a block: `check_fits` saw to that. Chunks get what the rows of one token leave.
        """
        for request in self.running:  # may shrink from its end, as above
            missing = self._blocks_for(request.num_scheduled_tokens + 1) - len(request.block_ids)
            if missing > 0 and not self._ends_in_flight(request):
                if not self._make_room(request, missing):
                    return False
                if request.status is RUNNING:
                    request.block_ids += self.pool.allocate(missing)
        left = [r.num_tokens - r.num_scheduled_tokens for r in self.running if not self._ends_in_flight(r)]
        budget = self.max_num_batched_tokens - left.count(1)
        for request in sorted(self.running, key=_admission):
            count = request.num_tokens - request.num_scheduled_tokens
            if count > 1 and budget > 0:
                self._take_blocks(request, budget)
                budget -= count
        return True

    def _make_room(self, request: Request, missing: int) -> bool:
        """Preempt the last until ``missing`` blocks are there or ``request`` gave way; False: steps are in flight."""
        while missing > self.pool.num_available and request.status is RUNNING:
            if self.in_flight:
                return False
            self._preempt_last()
        return True

    def _take_blocks(self, request: Request, budget: int) -> None:
        """Blocks for all tokens it has; under a window for the next ``budget`` at most, as far as there are any."""
        end = request.num_tokens
        if self.window is not None:
            end = min(end, request.num_scheduled_tokens + budget)
        missing = self._blocks_for(end) - len(request.block_ids)
        if missing > 0:
            request.block_ids += self.pool.allocate(min(missing, self.pool.num_available))

    def _admit_within_budget(self, decodes: list[Request], chunks: list[Request]) -> None:
        """Admit in order while budget, row slots and blocks last, and sort the admitted into the rows."""
        budget = self.max_num_batched_tokens - len(decodes)
        budget -= sum(request.num_tokens - request.num_scheduled_tokens for request in chunks)
        while budget > 0 and self.waiting and self._free_slots:
            request = self.waiting[0]
            if self._awaits_prompt(request) or not self._admit(request, budget):
                break
            self.waiting.pop(0)
            num_tokens = len(request.token_ids) - request.num_computed_tokens
            (decodes if num_tokens == 1 else chunks).append(request)
            budget -= num_tokens

    def _awaits_prompt(self, request: Request) -> bool:
        """Whether somebody is computing the very prompt whose blocks it is to share."""
        leader = request.leader
        if leader is None or leader.status is not RUNNING or not self._shares_prefix(request):
            return False
        return leader.num_computed_tokens < leader.num_prompt_tokens

    def _make_step(self, decodes: list[Request], chunks: list[Request]) -> Step:
        rows = len(decodes)
        starts = [request.num_scheduled_tokens for request in decodes]
        step = Step(decodes, starts, [1] * rows, list(range(rows)), rows)
        for request in chunks:
            start, budget = request.num_scheduled_tokens, self.max_num_batched_tokens - step.num_tokens
            if budget == 0:  # dropped steps gave back to older requests what they had been thought to have done
                break
            room = len(request.block_ids) * self.pool.block_size - start
            count = min(request.num_tokens - start, budget, room)
            if start + count == request.num_tokens:
                step.sample_rows.append(len(step.requests))
            step.requests.append(request)
            step.starts.append(start)
            step.counts.append(count)
            step.num_tokens += count
        return step

    # Admission and its reverse.

    def _admit(self, request: Request, budget: int) -> bool:
        """Take cached blocks from the index and new ones for all other tokens; False, and no change, if too few.

        Under a window: the cached blocks it covers, and as many new ones as the next ``budget`` tokens need; if there
        are too few to compute all tokens that it has, False.
        """
        if self._refused == (request, self.pool.version):
            return False
        usable = (len(request.token_ids) - 1) // self.pool.block_size  # at least one token is always computed
        caches = self._shares_prefix(request) and request.params.prompt_logprobs is None  # these need every logit
        cached = self.pool.lookup(self._digests(request, usable), request.token_ids) if caches else []
        computed = len(cached) * self.pool.block_size
        behind = self._behind(computed)
        seen = cached[behind:]
        missing = self._blocks_to_progress(len(request.token_ids)) - len(seen)
        if missing + self.pool.num_unheld(seen) > self.pool.num_available:
            self._refused = request, self.pool.version
            return False
        self.pool.hold(cached)
        self.pool.release(cached[:behind])  # not needed, but used: they become the last to be evicted
        request.block_ids = [NULL_BLOCK] * behind + seen
        request.num_computed_tokens = request.num_scheduled_tokens = computed
        self._take_blocks(request, budget)
        if request.num_cached_tokens < 0:
            request.num_cached_tokens = request.num_computed_tokens
            self.pool.count_lookup(request.num_prompt_tokens if caches else 0, request.num_cached_tokens)
        request.row_slot = self._free_slots.pop()
        request.admission = self._num_admissions
        request.status = RUNNING
        self._num_admissions += 1
        insort_right(self.running, request, key=Request.rank)
        return True

    def preempt_all(self) -> None:
        """Every running request back to waiting, in order, with nothing in flight: their blocks are about to go."""
        while self.running:
            self._preempt_last()

    def _preempt_last(self) -> None:
        """Whoever has the lowest priority, the youngest of them, waits again, ahead of all that are no better."""
        request = self.running[-1]
        self._give_back(request)
        request.status = RequestStatus.WAITING
        self.num_preemptions += 1
        insort_left(self.waiting, request, key=Request.rank)

    def _give_back(self, request: Request) -> None:
        """Blocks and row slot of a running request; its tokens and digests stay."""
        self.running.remove(request)
        self.pool.release(request.block_ids[self._behind(request.num_computed_tokens) :])
        self._free_slots.append(request.row_slot)
        request.block_ids = []
        request.num_computed_tokens = request.num_scheduled_tokens = request.num_pending = 0
        request.row_slot = request.admission = -1

    def _blocks_for(self, num_tokens: int) -> int:
        return blocks_for(num_tokens, self.pool.block_size)

    def _behind(self, num_computed: int) -> int:
        return blocks_behind(num_computed, self.window, self.pool.block_size)

    def _blocks_to_progress(self, num_tokens: int) -> int:
        return blocks_to_progress(num_tokens, self.window, self.pool.block_size)

    # The prefix chain of a request.

    def _shares_prefix(self, request: Request) -> bool:
        return self.pool.enable_prefix_caching and request.params.enable_prefix_caching

    def _digests(self, request: Request, num_blocks: int) -> list[bytes]:
        """Digests of the first ``num_blocks`` full blocks; each is computed once."""
        salt = (request.params.cache_salt or "").encode()
        extend_chain(request.digests, request.token_ids, num_blocks, self.pool.block_size, salt)
        return request.digests[:num_blocks]

    def _register(self, request: Request, first: int, last: int) -> None:
        """Put blocks [first, last), now full and computed, into the index."""
        size, digests = self.pool.block_size, self._digests(request, last)
        for i in range(first, last):
            parent = digests[i - 1] if i else ROOT
            self.pool.register(request.block_ids[i], digests[i], parent, request.token_ids[i * size : (i + 1) * size])

    # After a step.

    def commit(self, step: Step, tokens: Sequence[int]) -> list[Request]:
        """Note that ``step`` was executed; ``tokens[i]`` is the token that row ``step.sample_rows[i]`` sampled.

        A token of -1 says that the row's logits were not finite, and ends that request alone. Requests that ended while
        the step ran are skipped. Returns those that sampled, in row order; see their status for who finished. Steps are
        committed in the order of their launch; the one handed out last counts as launched, if it was not.
        """
        if len(tokens) != len(step.sample_rows):
            raise ValueError(f"{len(tokens)} tokens for {len(step.sample_rows)} rows that sample")
        if step is self._handed_out:
            self.launch(step)
        if not self.in_flight or step is not self.in_flight[0]:
            raise ValueError("steps are committed in the order in which they were handed out, each once")
        self.in_flight.popleft()
        for request, start, count in zip(step.requests, step.starts, step.counts, strict=True):
            if request.status is RUNNING:
                self._advance(request, start, start + count)
        if self.window is not None:
            self._give_back_behind(step)
        sampled: list[Request] = []
        for row, token in zip(step.sample_rows, tokens, strict=True):
            request = step.requests[row]
            if request.status is RUNNING:
                request.num_pending -= 1
                self._append(request, token)
                sampled.append(request)
        return sampled

    def _advance(self, request: Request, start: int, end: int) -> None:
        request.num_computed_tokens = end
        first, last = start // self.pool.block_size, end // self.pool.block_size
        if last > first and self._shares_prefix(request):
            self._register(request, first, last)

    def _give_back_behind(self, step: Step) -> None:
        """Blocks that fell behind the window go back, their cells name the null block; in the index they stay a hit."""
        window, size = self.window, self.pool.block_size
        for request, start, count in zip(step.requests, step.starts, step.counts, strict=True):
            last = blocks_behind(start + count, window, size)
            if last and request.status is RUNNING and request.block_ids[last - 1] != NULL_BLOCK:
                first = blocks_behind(start, window, size)
                self.pool.release(request.block_ids[first:last])
                request.block_ids[first:last] = [NULL_BLOCK] * (last - first)

    def _append(self, request: Request, token: int) -> None:
        if token < 0:
            self._fail_non_finite(request)
            return
        request.token_ids.append(token)
        reason, stop_reason = ending(request, token)
        if reason is not None:
            self.finish(request, reason, stop_reason)

    def _fail_non_finite(self, request: Request) -> None:
        """End the request, and let nobody else read the blocks it computed, those behind the window included."""
        position = len(request.token_ids)
        error = NonFiniteLogits(f"request {request.request_id}: the logits for position {position:,} are not finite")
        masked = request.mask.fault if request.mask is not None else None
        computed = request.digests[request.num_cached_tokens // self.pool.block_size :]
        self.pool.forget(self.pool.registered(computed))
        self.finish(request, "error", error=request.fault or masked or error)

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: StopReason = None,
        error: OstinatoError | None = None,
    ) -> None:
        """End a waiting or running request and give everything back at once; nothing happens if it has ended before."""
        if request.status is RequestStatus.FINISHED:
            return
        if request.status is RUNNING:
            self._give_back(request)
        else:
            self.waiting.remove(request)
        request.finish_reason, request.stop_reason, request.error = reason, stop_reason, error
        request.status = RequestStatus.FINISHED

    def fail(self, step: Step, error: OstinatoError) -> None:
        """End every request of a step whose execution failed; the others go on."""
        for request in step.requests:
            self.finish(request, "error", error=error)

    def check(self) -> None:
        """Raise RuntimeError on the first broken invariant, the pool's included."""
        self.pool.check(request.block_ids for request in self.running)
        for problem in problems(self, self._free_slots, self._handed_out):
            raise RuntimeError(f"scheduler: {problem}")


def _admission(request: Request) -> int:
    return request.admission
