"""The scheduler under random load, against a model of the whole machine that a wrong block cannot fool.

`Machine` runs a scheduler over a simulated model and a simulated KV cache. The KV entry of a token is a hash of all
tokens before it, so that reading a request's context back through its block table, entry by entry, shows any aliasing,
stale block or write to a shared one; its start depends on the salt, and is a request's own if it opted out, so that a
prefix shared across that border shows too. The next token is a function of the last entry. `oracle` gives what the
request must generate alone, without any scheduler. Every invariant is checked after every operation.

Steps may be in flight: the device runs them in the order of their launch and its tokens are seen later, so the machine
knows more than the scheduler, as the device does.

Under a sliding window a row reads what its queries see; `seen_from` says by plain loops which cells those are, and all
cells that nobody will see again must be null.

OSTINATO_SOAK=1 makes it a million operations and 100,000 Hypothesis steps.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ostinato.block_pool import BlockPool
from ostinato.layers.errors import NonFiniteLogits, OstinatoError, OutOfBlocks, PromptTooLong
from ostinato.request import Request, RequestStatus
from ostinato.sampling_params import SamplingParams
from ostinato.scheduler import Scheduler
from ostinato.step import Step
from ostinato.window import blocks_behind, blocks_to_progress, most_blocks

SOAK = os.environ.get("OSTINATO_SOAK") == "1"

EOS, STOP, VOCABULARY = 0, 1, 13
GARBAGE = -1  # what a failed step may leave in the slots it was to write
SALTS = [None, None, None, "a", "bb"]
BASES = [[2, 3, 4, 5, 6] * 6, [2, 3, 4, 5, 6, 6, 5, 4, 3, 2] * 3, [3] * 30]


def entry(previous: int, token: int) -> int:
    """The KV entry of a token behind ``previous``."""
    return hash((previous, token))


def entries(start: int, token_ids: list[int]) -> list[int]:
    return list(accumulate(token_ids, entry, initial=start))[1:]


def sample(last: int) -> int:
    """The token that the model generates behind an entry; now and then it is -1, for logits that are not finite."""
    return -1 if last % 199 == 0 else last % VOCABULARY


def oracle(start: int, prompt: list[int], params: SamplingParams, max_model_len: int) -> tuple[list[int], str, Any]:
    """Tokens, finish_reason and stop_reason of a request that is alone in the world."""
    last, generated = entries(start, prompt)[-1], list[int]()
    while True:
        token = sample(last)
        if token == -1:
            return generated, "error", None
        generated.append(token)
        if len(generated) >= params.min_tokens:
            if token == EOS and not params.ignore_eos:
                return generated, "stop", None
            if token in params.stop_token_ids:
                return generated, "stop", token
        if len(generated) == params.max_tokens or len(prompt) + len(generated) == max_model_len:
            return generated, "length", None
        last = entry(last, token)


def seen_from(first: int, last: int, window: int, block_size: int) -> set[int]:
    """The cells of a block table that queries at positions [first, last) see, by looking at every query and key."""
    return {
        key // block_size for query in range(first, last) for key in range(query + 1) if query - window < key <= query
    }


def blocks_to_run(num_computed: int, window: int | None, block_size: int) -> int:
    """The blocks without which a request cannot compute that many tokens, however few it is given at a time."""
    cells = [seen_from(query, query + 1, window or num_computed, block_size) for query in range(num_computed)]
    return max(map(len, cells))


@dataclass(frozen=True)
class Limits:
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int = 32
    enable_prefix_caching: bool = True
    window: int | None = None
    max_in_flight: int = 1


@dataclass
class Packed:
    """What the runner copies out of a step: afterwards requests may end, the device still writes."""

    step: Step
    tables: list[list[int]]
    contexts: list[list[int]]  # the entries that each row must find


class Machine:
    """A scheduler with everything around it, and the truth about each request."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks, limits.block_size, limits.enable_prefix_caching)
        self.scheduler = Scheduler(
            self.pool,
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            limits.max_model_len,
            limits.window,
            limits.max_in_flight,
        )
        self.flight: deque[tuple[Packed, list[int]]] = deque()
        self.unseen: dict[Request, list[int]] = {}  # tokens that exist on the device alone
        self.most_in_flight = self.overruns = 0
        self.dropped = False  # more than one step in flight
        self.kv = [[GARBAGE] * limits.block_size for _ in range(limits.num_blocks)]
        self.live: list[Request] = []
        self.ended: deque[Request] = deque(maxlen=8)
        self.starts: dict[Request, int] = {}
        self.interrupted: set[Request] = set()  # aborted, or in a failed step
        self.registered: dict[int, tuple[bytes, list[int]]] = {}
        self.submitted = 0
        self.mixed = 0.0  # how often a request of a long run may have a priority of its own
        self.longer_than_the_cache = 0  # requests that ended so

    # Operations.

    def submit(self, prompt: list[int], params: SamplingParams, priority: int = 0) -> None:
        request = Request(self.submitted, prompt, params, eos_token_ids=frozenset([EOS]), priority=priority)
        self.submitted += 1
        computed = min(len(prompt) + params.max_tokens, self.limits.max_model_len) - 1
        try:
            self.scheduler.add(request)
        except PromptTooLong:
            assert len(prompt) >= self.limits.max_model_len
        except OutOfBlocks:
            assert self.blocks_to_run(computed) > self.limits.num_blocks - 1
        else:
            assert len(prompt) < self.limits.max_model_len
            assert self.blocks_to_run(computed) <= self.limits.num_blocks - 1
            owner = None if params.enable_prefix_caching else request.request_id
            self.starts[request] = hash((len(params.cache_salt or ""), owner))
            self.live.append(request)

    def abort(self, choice: int) -> None:
        """Cancel somebody: waiting, running or, at times, ended before."""
        if candidates := [*self.live, *self.ended]:
            request = candidates[choice % len(candidates)]
            if request.status is not RequestStatus.FINISHED:
                self.interrupted.add(request)
            self.scheduler.finish(request, "abort")

    def step(self, outcome: str, abort: int | None = None) -> None:
        """One step is launched if there is one; once as many are in flight as may be, the oldest lands."""
        step = self.scheduler.next_step()
        self.check()
        if step is None:
            assert self.flight or not self.scheduler.has_work, "idle while something waits"
            self.land(outcome)
            return
        packed = self.pack(step)
        if self.limits.max_in_flight > 1:
            self.scheduler.launch(step)
            self.check()
        self.flight.append((packed, self.execute(packed)))
        self.most_in_flight = max(self.most_in_flight, len(self.flight))
        if abort is not None:
            self.abort(abort)
        if len(self.flight) == self.limits.max_in_flight:
            self.land(outcome)

    def land(self, outcome: str) -> None:
        """The oldest step in flight ends well; or all are dropped, and with "failed" the oldest ends its requests."""
        if not self.flight:
            return
        packed, tokens = self.flight[0]
        if outcome == "executed":
            self.flight.popleft()
            for row in packed.step.sample_rows:
                self.unseen[packed.step.requests[row]].pop(0)
            self.overruns += sum(
                packed.step.requests[row].finish_reason in ("stop", "error") for row in packed.step.sample_rows
            )
            self.scheduler.commit(packed.step, tokens)
            return
        self.dropped |= len(self.flight) > 1
        for lost, _ in self.flight:
            self.scribble(lost)
        self.flight.clear()
        self.unseen.clear()
        self.scheduler.drop_in_flight()
        if outcome == "failed":
            self.interrupted.update(r for r in packed.step.requests if r.status is not RequestStatus.FINISHED)
            self.scheduler.fail(packed.step, OstinatoError("injected"))

    def drain(self) -> None:
        """Everything that was submitted ends, and everything is given back."""
        for _ in range(5_000):
            if not self.scheduler.has_work:
                break
            self.step("executed")
            self.check()
        assert not self.live
        self.pool.check()
        assert self.pool.num_available == self.limits.num_blocks - 1

    def blocks_to_run(self, num_computed: int) -> int:
        return blocks_to_run(num_computed, self.limits.window, self.limits.block_size)

    # The device.

    def pack(self, step: Step) -> Packed:
        self.check_rows(step)
        ends = [start + count for start, count in zip(step.starts, step.counts, strict=True)]
        known = [[*r.token_ids, *self.unseen.get(r, [])] for r in step.requests]
        starts = [self.starts[request] for request in step.requests]
        contexts = [entries(first, ids[:end]) for first, ids, end in zip(starts, known, ends, strict=True)]
        return Packed(step, [list(request.block_ids) for request in step.requests], contexts)

    def slots(self, packed: Packed, row: int, first: int) -> list[tuple[int, int]]:
        """(block, offset) of positions [first, end) of a row."""
        end, table = len(packed.contexts[row]), packed.tables[row]
        cells = [divmod(position, self.limits.block_size) for position in range(first, end)]
        return [(table[cell], offset) for cell, offset in cells]

    def execute(self, packed: Packed) -> list[int]:
        """All rows write, then all rows read their whole context, as the layers do."""
        for row, (start, context) in enumerate(zip(packed.step.starts, packed.contexts, strict=True)):
            for (block_id, offset), value in zip(self.slots(packed, row, start), context[start:], strict=True):
                self.kv[block_id][offset] = value
        self.kv[0] = [GARBAGE] * self.limits.block_size
        for row, (start, context) in enumerate(zip(packed.step.starts, packed.contexts, strict=True)):
            first = 0 if self.limits.window is None else max(0, start - self.limits.window + 1)
            read = [self.kv[block_id][offset] for block_id, offset in self.slots(packed, row, first)]
            assert read == context[first:]
        tokens = [sample(packed.contexts[row][-1]) for row in packed.step.sample_rows]
        for row, token in zip(packed.step.sample_rows, tokens, strict=True):
            self.unseen.setdefault(packed.step.requests[row], []).append(token)
        return tokens

    def scribble(self, packed: Packed) -> None:
        for row, start in enumerate(packed.step.starts):
            for block_id, offset in self.slots(packed, row, start):
                self.kv[block_id][offset] = GARBAGE

    # The truth.

    def check_rows(self, step: Step) -> None:
        assert 0 < sum(step.counts) == step.num_tokens <= self.limits.max_num_batched_tokens
        assert min(step.counts) > 0
        assert len(step.requests) <= self.limits.max_num_seqs
        going_on = [r for r in self.scheduler.running if not r.num_pending or r.num_tokens < r.max_length]
        absent = [request for request in going_on if request not in step.requests]
        assert set(step.requests) <= set(going_on)
        chunks = [request for request in going_on if request.num_tokens - request.num_scheduled_tokens > 1]
        newest = sorted(chunks, key=lambda request: request.admission)[len(chunks) - len(absent) :]
        assert {*absent} == ({*newest} if self.dropped else set()), "everybody progresses, who was admitted first first"
        assert not absent or step.num_tokens == self.limits.max_num_batched_tokens
        missing = [r.num_tokens - r.num_scheduled_tokens for r in step.requests]
        assert [row for row, count in enumerate(step.counts) if count == missing[row]] == step.sample_rows
        assert missing == sorted(missing, key=lambda tokens: tokens > 1), "decode rows come first"
        assert step.starts == [r.num_scheduled_tokens for r in step.requests]
        assert step.is_decode == all(count == tokens == 1 for count, tokens in zip(step.counts, missing, strict=True))
        pairs = zip(step.requests, step.counts, missing, strict=True)
        cut = [request for request, count, tokens in pairs if count < tokens]
        assert len(cut) < 2
        newest = max(self.scheduler.running, key=lambda request: request.admission)
        assert self.dropped or cut in ([], [newest]), "only the one admitted last has a chunk cut short"
        self.check_needed(step)

    def check_needed(self, step: Step) -> None:
        """Under a window each row holds the cells that its step sees, and all rows no more than a plan reckons with."""
        limits = self.limits
        if limits.window is None:
            return
        for request, start, count in zip(step.requests, step.starts, step.counts, strict=True):
            seen = seen_from(start, start + count, limits.window, limits.block_size)
            assert seen <= {cell for cell, block_id in enumerate(request.block_ids) if block_id}
            assert len(seen) <= most_blocks(1, count, limits.window, limits.block_size)
            given = -(-(start + count) // limits.block_size)
            assert len(request.block_ids) == given or self.dropped, "no more than it is given"
            assert len(request.block_ids) >= given
        held = sum(block_id != 0 for request in step.requests for block_id in request.block_ids)
        tokens = limits.max_num_batched_tokens * limits.max_in_flight
        assert held <= most_blocks(limits.max_num_seqs, tokens, limits.window, limits.block_size)

    def check_null_cells(self) -> None:
        """Null is what no token still to be computed sees, and nothing else."""
        for request in self.scheduler.running if self.limits.window is not None else ():
            window, size, first = self.limits.window or 0, self.limits.block_size, request.num_computed_tokens
            seen = seen_from(first, first + window + size, window, size)
            null = {cell for cell in range(first // size) if cell not in seen}
            assert null == {cell for cell, block_id in enumerate(request.block_ids) if block_id == 0}

    def check(self) -> None:
        self.scheduler.check()
        self.check_null_cells()
        running, waiting = ([(r.priority, r.request_id) for r in line] for line in self.lines())
        assert (running, waiting) == (sorted(running), sorted(waiting)), "by priority, then in order of submission"
        if len({priority for priority, _ in running + waiting}) == 1:
            assert running + waiting == sorted(running + waiting), "equals are admitted in order of submission"
        self.check_registered()
        for request in [request for request in self.live if request.status is RequestStatus.FINISHED]:
            self.live.remove(request)
            self.ended.append(request)
            self.check_ended(request)
            usable = (self.limits.num_blocks - 1) * self.limits.block_size
            self.longer_than_the_cache += len(request.token_ids) - 1 > usable and request.finish_reason == "length"

    def lines(self) -> tuple[list[Request], list[Request]]:
        return self.scheduler.running, self.scheduler.waiting

    def check_registered(self) -> None:
        """A block in the index never changes."""
        prefixes = {b: prefix for b, prefix in enumerate(self.pool._prefixes) if prefix is not None}
        for block_id, prefix in prefixes.items():
            known = self.registered.get(block_id)
            if known is not None and known[0] == prefix.digest:
                assert known[1] == self.kv[block_id], "a registered block was written to"
        self.registered = {b: (prefix.digest, list(self.kv[b])) for b, prefix in prefixes.items()}

    def check_ended(self, request: Request) -> None:
        expected = oracle(self.starts[request], request.prompt_token_ids, request.params, self.limits.max_model_len)
        if request in self.interrupted:
            assert request.output_token_ids == expected[0][: request.num_generated]
            assert request.finish_reason in ("abort", "error")
        else:
            assert (request.output_token_ids, request.finish_reason, request.stop_reason) == expected
            assert isinstance(request.error, NonFiniteLogits) == (request.finish_reason == "error")
        assert request.num_cached_tokens < request.num_prompt_tokens
        assert request.block_ids == []


# Hypothesis looks for the shortest way to break it.

limits = st.integers(1, 4).flatmap(
    lambda seqs: st.builds(
        Limits,
        num_blocks=st.integers(2, 16),
        block_size=st.integers(1, 4),
        max_num_seqs=st.just(seqs),
        max_num_batched_tokens=st.integers(seqs, 12),
        enable_prefix_caching=st.sampled_from([True, True, True, False]),
        max_in_flight=st.sampled_from([1, 2, 2, 3]),
    )
)
windows = st.tuples(limits, st.integers(1, 34), st.integers(1, 16)).map(
    lambda drawn: replace(drawn[0], window=drawn[1], num_blocks=1 + drawn[2])
)
prompts = st.builds(
    lambda base, length, tail: BASES[base][:length] + tail,
    st.integers(0, len(BASES) - 1),
    st.integers(1, 30),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=3),
)
params = st.integers(1, 16).flatmap(
    lambda max_tokens: st.builds(
        SamplingParams,
        max_tokens=st.just(max_tokens),
        min_tokens=st.integers(0, max_tokens),
        ignore_eos=st.booleans(),
        stop_token_ids=st.sampled_from([(), (STOP,), (EOS, STOP)]),
        cache_salt=st.sampled_from(SALTS),
        enable_prefix_caching=st.sampled_from([True, True, True, False]),
    )
)
outcomes = st.sampled_from(["executed"] * 6 + ["dropped", "failed"])


class Operations(RuleBasedStateMachine):
    @rule(prompt=prompts, params=params, copies=st.integers(1, 3), priority=st.sampled_from([0, 0, 0, -1, 1, 2]))
    def submit(self, prompt: list[int], params: SamplingParams, copies: int, priority: int) -> None:
        for _ in range(copies):
            self.machine.submit(prompt, params, priority)

    @rule(choice=st.integers(0, 40))
    def abort(self, choice: int) -> None:
        self.machine.abort(choice)

    @rule(outcome=outcomes, abort=st.none() | st.integers(0, 40), repeat=st.integers(1, 4))
    def step(self, outcome: str, abort: int | None, repeat: int) -> None:
        for _ in range(repeat):
            self.machine.step(outcome, abort)
            self.machine.check()

    @rule()
    def reset_prefix_cache(self) -> None:
        self.machine.pool.reset_prefix_cache()

    @invariant()
    def check(self) -> None:
        if hasattr(self, "machine"):
            self.machine.check()

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.machine.drain()


class SchedulerMachine(Operations):
    @initialize(limits=limits)
    def start(self, limits: Limits) -> None:
        self.machine = Machine(limits)


class WindowMachine(Operations):
    @initialize(limits=windows)
    def start(self, limits: Limits) -> None:
        self.machine = Machine(limits)


@pytest.mark.parametrize("machine", [SchedulerMachine, WindowMachine])
def test_hypothesis_finds_no_broken_invariant(machine: type[Operations]) -> None:
    examples = settings(max_examples=2_000 if SOAK else 120, stateful_step_count=50, deadline=None)
    run_state_machine_as_test(machine, settings=examples)  # type: ignore[no-untyped-call]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12))
def test_the_bound_of_a_window_is_what_its_queries_see_and_is_reached(
    num_tokens: int, window: int, block_size: int, count: int
) -> None:
    bound = most_blocks(1, count, window, block_size)
    starts = range(window + 2 * block_size)
    held = [len(seen_from(start, start + count, window, block_size)) for start in starts]
    assert max(held) == bound
    for start in starts:
        seen_later = seen_from(start, start + window + block_size, window, block_size)
        assert blocks_behind(start, window, block_size) == min(seen_later)
    assert blocks_to_progress(num_tokens, window, block_size) == blocks_to_run(num_tokens, window, block_size)
    assert blocks_to_progress(num_tokens, None, block_size) == blocks_to_run(num_tokens, None, block_size)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 8), st.integers(0, 9))
def test_no_requests_hold_more_than_the_bound_of_their_number_and_tokens(
    counts: list[int], window: int, block_size: int, spare: int
) -> None:
    held = sum(most_blocks(1, count, window, block_size) for count in counts)
    assert held <= most_blocks(len(counts), sum(counts) + spare, window, block_size)
    assert held <= most_blocks(len(counts) + 1, sum(counts) + spare, window, block_size)


# Long runs of one machine: many requests through few blocks.


def random_params(rng: random.Random, salts: list[str | None]) -> SamplingParams:
    max_tokens = rng.randint(1, 16)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=rng.randint(0, max_tokens) if rng.random() < 0.3 else 0,
        ignore_eos=rng.random() < 0.5,
        stop_token_ids=(STOP,) if rng.random() < 0.2 else (),
        cache_salt=rng.choice(salts),
        enable_prefix_caching=rng.random() < 0.9,
    )


def random_operation(machine: Machine, rng: random.Random, salts: list[str | None] = SALTS) -> None:
    kind = rng.random()
    if kind < 0.2 and machine.scheduler.num_waiting < 8:
        tail = [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 3))]
        priority = rng.choice([0, 0, 0, -1, 5]) if rng.random() < machine.mixed else 0
        machine.submit(rng.choice(BASES)[: rng.randint(1, 20)] + tail, random_params(rng, salts), priority)
    elif kind < 0.22:
        machine.abort(rng.randrange(40))
    elif kind < 0.221:
        machine.pool.reset_prefix_cache()
    else:
        outcome = rng.choices(["executed", "dropped", "failed"], [0.95, 0.04, 0.01])[0]
        machine.step(outcome, rng.randrange(40) if rng.random() < 0.01 else None)


def test_colliding_digests_cost_hits_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.block_pool.block_digest", lambda parent, token_ids, salt: b"the same for all")
    machine, rng = Machine(Limits(17, 2, 4, 12)), random.Random(0)
    for _ in range(2_000):
        random_operation(machine, rng, salts=[None])  # a salt lives in the digest alone
        machine.check()
    machine.drain()
    assert machine.pool.hits > 0


@pytest.mark.parametrize("seed", range(8))
def test_a_long_random_run(seed: int) -> None:
    rng = random.Random(seed)
    seqs, size, tokens = rng.randint(3, 5), rng.randint(1, 4), rng.randint(32, 48)
    machine = Machine(Limits(1 + tokens // size, size, seqs, rng.randint(seqs, 16), max_in_flight=1 + seed % 2))
    machine.mixed = rng.choice([0.0, 0.3, 1.0])
    for _ in range(125_000 if SOAK else 8_000):
        random_operation(machine, rng)
        machine.check()
    machine.drain()
    assert machine.most_in_flight == machine.limits.max_in_flight
    assert (machine.overruns > 0) == (machine.most_in_flight > 1)
    assert machine.scheduler.num_preemptions > 0
    assert machine.pool.evictions > 0
    assert machine.pool.hits > 0


@pytest.mark.parametrize("seed", range(6))
def test_a_long_random_run_under_a_window(seed: int) -> None:
    """Through too few blocks for two whole windows; the longer requests would not fit as a whole."""
    rng = random.Random(seed)
    seqs, size, window = rng.randint(2, 4), rng.randint(1, 4), rng.randint(5, 12)
    least = most_blocks(1, 1, window, size)
    num_blocks = 1 + rng.randint(least, 2 * least - 1)
    budget, ahead = rng.randint(seqs, 16), 1 + seed % 2
    machine = Machine(Limits(num_blocks, size, seqs, budget, max_model_len=48, window=window, max_in_flight=ahead))
    machine.mixed = rng.choice([0.0, 0.3, 1.0])
    for _ in range(125_000 if SOAK else 6_000):
        random_operation(machine, rng)
        machine.check()
    machine.drain()
    assert machine.longer_than_the_cache > 0
    assert machine.scheduler.num_preemptions > 0
    assert machine.pool.evictions > 0
