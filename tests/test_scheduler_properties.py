"""The scheduler under random load, against a model of the whole machine that a wrong block cannot fool.

`Machine` runs a scheduler over a simulated model and a simulated KV cache. The KV entry of a token is a hash of all
tokens before it, so that reading a request's context back through its block table, entry by entry, shows any aliasing,
stale block or write to a shared one; its start depends on the salt, and is a request's own if it opted out, so that a
prefix shared across that border shows too. The next token is a function of the last entry. `oracle` gives what the
request must generate alone, without any scheduler. Every invariant is checked after every operation.

OSTINATO_SOAK=1 makes it a million operations and 100,000 Hypothesis steps.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ostinato.block_pool import BlockPool
from ostinato.layers.errors import NonFiniteLogits, OstinatoError, OutOfBlocks, PromptTooLong
from ostinato.request import Request, RequestStatus
from ostinato.sampling_params import SamplingParams
from ostinato.scheduler import Scheduler
from ostinato.step import Step

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


@dataclass(frozen=True)
class Limits:
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int = 32
    enable_prefix_caching: bool = True


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
        self.scheduler = Scheduler(self.pool, limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_model_len)
        self.kv = [[GARBAGE] * limits.block_size for _ in range(limits.num_blocks)]
        self.live: list[Request] = []
        self.ended: deque[Request] = deque(maxlen=8)
        self.starts: dict[Request, int] = {}
        self.interrupted: set[Request] = set()  # aborted, or in a failed step
        self.registered: dict[int, tuple[bytes, list[int]]] = {}
        self.submitted = 0

    # Operations.

    def submit(self, prompt: list[int], params: SamplingParams) -> None:
        request = Request(self.submitted, prompt, params, eos_token_ids=frozenset([EOS]))
        self.submitted += 1
        computed = min(len(prompt) + params.max_tokens, self.limits.max_model_len) - 1
        try:
            self.scheduler.add(request)
        except PromptTooLong:
            assert len(prompt) >= self.limits.max_model_len
        except OutOfBlocks:
            assert computed > (self.limits.num_blocks - 1) * self.limits.block_size
        else:
            assert len(prompt) < self.limits.max_model_len
            assert computed <= (self.limits.num_blocks - 1) * self.limits.block_size
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
        """One step that is executed, or fails and is dropped, or fails and ends its requests."""
        step = self.scheduler.next_step()
        self.check()
        assert (step is None) == (not self.scheduler.has_work), "idle while something waits"
        if step is None:
            return
        packed = self.pack(step)
        if abort is not None:
            self.abort(abort)
        if outcome == "executed":
            self.scheduler.commit(step, self.execute(packed))
        else:
            self.scribble(packed)
        if outcome == "failed":
            self.interrupted.update(r for r in step.requests if r.status is not RequestStatus.FINISHED)
            self.scheduler.fail(step, OstinatoError("injected"))

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

    # The device.

    def pack(self, step: Step) -> Packed:
        self.check_rows(step)
        ends = [start + count for start, count in zip(step.starts, step.counts, strict=True)]
        contexts = [entries(self.starts[r], r.token_ids[:end]) for r, end in zip(step.requests, ends, strict=True)]
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
        for row, context in enumerate(packed.contexts):
            assert [self.kv[block_id][offset] for block_id, offset in self.slots(packed, row, 0)] == context
        return [sample(packed.contexts[row][-1]) for row in packed.step.sample_rows]

    def scribble(self, packed: Packed) -> None:
        for row, start in enumerate(packed.step.starts):
            for block_id, offset in self.slots(packed, row, start):
                self.kv[block_id][offset] = GARBAGE

    # The truth.

    def check_rows(self, step: Step) -> None:
        assert 0 < sum(step.counts) == step.num_tokens <= self.limits.max_num_batched_tokens
        assert min(step.counts) > 0
        assert len(step.requests) <= self.limits.max_num_seqs
        assert sorted(step.requests, key=id) == sorted(self.scheduler.running, key=id), "everybody progresses"
        missing = [len(r.token_ids) - r.num_computed_tokens for r in step.requests]
        assert [row for row, count in enumerate(step.counts) if count == missing[row]] == step.sample_rows
        assert missing == sorted(missing, key=lambda tokens: tokens > 1), "decode rows come first"
        assert step.starts == [r.num_computed_tokens for r in step.requests]
        assert step.is_decode == all(count == tokens == 1 for count, tokens in zip(step.counts, missing, strict=True))

    def check(self) -> None:
        self.scheduler.check()
        line = [request.request_id for request in [*self.scheduler.running, *self.scheduler.waiting]]
        assert line == sorted(line), "running, then waiting, is in order of submission"
        self.check_registered()
        for request in [request for request in self.live if request.status is RequestStatus.FINISHED]:
            self.live.remove(request)
            self.ended.append(request)
            self.check_ended(request)

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


# Hypothesis looks for the shortest way to break it.

limits = st.integers(1, 4).flatmap(
    lambda seqs: st.builds(
        Limits,
        num_blocks=st.integers(2, 16),
        block_size=st.integers(1, 4),
        max_num_seqs=st.just(seqs),
        max_num_batched_tokens=st.integers(seqs, 12),
        enable_prefix_caching=st.sampled_from([True, True, True, False]),
    )
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


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(limits=limits)
    def start(self, limits: Limits) -> None:
        self.machine = Machine(limits)

    @rule(prompt=prompts, params=params, copies=st.integers(1, 3))
    def submit(self, prompt: list[int], params: SamplingParams, copies: int) -> None:
        for _ in range(copies):
            self.machine.submit(prompt, params)

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


def test_hypothesis_finds_no_broken_invariant() -> None:
    examples = settings(max_examples=2_000 if SOAK else 120, stateful_step_count=50, deadline=None)
    run_state_machine_as_test(SchedulerMachine, settings=examples)  # type: ignore[no-untyped-call]


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
        machine.submit(rng.choice(BASES)[: rng.randint(1, 20)] + tail, random_params(rng, salts))
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
    machine = Machine(Limits(1 + tokens // size, size, seqs, rng.randint(seqs, 16)))
    for _ in range(125_000 if SOAK else 8_000):
        random_operation(machine, rng)
        machine.check()
    machine.drain()
    assert machine.scheduler.num_preemptions > 0
    assert machine.pool.evictions > 0
    assert machine.pool.hits > 0
