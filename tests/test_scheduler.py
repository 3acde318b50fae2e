"""Scheduler, one claim a test, in literal numbers: rows, blocks, order, ends. `check` runs around each commit."""

from __future__ import annotations

from typing import Any

import pytest

from ostinato.block_pool import BlockPool
from ostinato.layers.errors import ConfigError, NonFiniteLogits, OstinatoError, OutOfBlocks, ParamError, PromptTooLong
from ostinato.request import Request, RequestStatus
from ostinato.sampling_params import SamplingParams
from ostinato.scheduler import Scheduler
from ostinato.step import Step

WAITING, RUNNING, FINISHED = RequestStatus.WAITING, RequestStatus.RUNNING, RequestStatus.FINISHED
EOS, TOKEN = 99, 50


def make(
    blocks: int = 20,
    size: int = 4,
    seqs: int = 4,
    budget: int = 16,
    max_model_len: int = 64,
    window: int | None = None,
) -> Scheduler:
    """A scheduler over ``blocks`` usable blocks."""
    return Scheduler(BlockPool(blocks + 1, size), seqs, budget, max_model_len, window)


def add(scheduler: Scheduler, prompt: list[int], request_id: int = 0, **params: Any) -> Request:
    request = Request(request_id, prompt, SamplingParams(**{"max_tokens": 8} | params), eos_token_ids=frozenset([EOS]))
    scheduler.add(request)
    return request


def tokens(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def begin(scheduler: Scheduler) -> Step:
    step = scheduler.next_step()
    scheduler.check()
    assert step is not None
    assert step.num_tokens == sum(step.counts) <= scheduler.max_num_batched_tokens
    return step


def run(scheduler: Scheduler, *sampled: int) -> Step:
    """One step; rows that sample get ``sampled``, or TOKEN each."""
    step = begin(scheduler)
    scheduler.commit(step, sampled or [TOKEN] * len(step.sample_rows))
    scheduler.check()
    return step


def rows(step: Step) -> list[tuple[int, int, int]]:
    """(request id, start, count) of each row."""
    ids = [request.request_id for request in step.requests]
    return list(zip(ids, step.starts, step.counts, strict=True))


def assert_empty(scheduler: Scheduler) -> None:
    scheduler.check()
    assert scheduler.pool.num_used == scheduler.num_running == scheduler.num_waiting == 0
    assert scheduler.next_step() is None
    assert not scheduler.has_work


# One request.


def test_a_request_from_prompt_to_length() -> None:
    scheduler = make()
    request = add(scheduler, tokens(0, 5), max_tokens=3)
    assert (request.status, request.num_cached_tokens, request.row_slot, request.admission) == (WAITING, -1, -1, -1)

    step = begin(scheduler)
    assert rows(step) == [(0, 0, 5)]
    assert (step.sample_rows, step.num_tokens, step.is_decode) == ([0], 5, False)
    assert (request.status, request.block_ids, request.row_slot, request.admission) == (RUNNING, [1, 2], 0, 0)
    assert request.num_computed_tokens == 0  # until the commit
    assert scheduler.commit(step, [10]) == [request]
    assert (request.num_computed_tokens, request.output_token_ids, request.num_cached_tokens) == (5, [10], 0)

    step = run(scheduler, 11)
    assert (rows(step), step.sample_rows, step.is_decode) == ([(0, 5, 1)], [0], True)
    assert rows(run(scheduler, 12)) == [(0, 6, 1)]
    assert (request.status, request.finish_reason, request.stop_reason) == (FINISHED, "length", None)
    assert (request.output_token_ids, request.num_generated) == ([10, 11, 12], 3)
    assert (request.block_ids, request.row_slot, request.admission) == ([], -1, -1)
    assert request.prompt_token_ids == tokens(0, 5)
    assert_empty(scheduler)


def test_a_block_is_taken_only_where_a_token_crosses_a_boundary() -> None:
    scheduler = make()
    request = add(scheduler, tokens(0, 3), max_tokens=8)
    tables = []
    while request.status is not FINISHED:
        step = begin(scheduler)
        tables.append(len(request.block_ids))
        scheduler.commit(step, [TOKEN])
    assert tables == [1, 1, 2, 2, 2, 2, 3, 3]  # 3, 4 … 10 tokens; the eleventh is generated, never computed


def test_there_is_nothing_to_do_without_requests() -> None:
    assert_empty(make())


def test_the_last_token_of_all_may_fill_max_model_len() -> None:
    scheduler = make(max_model_len=8)
    request = add(scheduler, tokens(0, 6), max_tokens=30)
    run(scheduler)
    assert request.status is RUNNING
    run(scheduler)
    assert (len(request.token_ids), request.finish_reason) == (8, "length")


# Rows and budget.


def test_a_long_prompt_is_chunked_and_only_its_last_chunk_samples() -> None:
    scheduler = make(budget=8)
    request = add(scheduler, tokens(0, 20), max_tokens=1)
    steps = [run(scheduler) for _ in range(3)]
    assert [rows(step) for step in steps] == [[(0, 0, 8)], [(0, 8, 8)], [(0, 16, 4)]]
    assert [step.sample_rows for step in steps] == [[], [], [0]]
    assert request.status is FINISHED


def test_decode_rows_come_first_and_a_chunk_gets_the_rest_of_the_budget() -> None:
    scheduler = make(budget=8)
    add(scheduler, tokens(0, 2), 0)
    add(scheduler, tokens(10, 2), 1)
    run(scheduler)
    add(scheduler, tokens(20, 11), 2)
    add(scheduler, tokens(40, 3), 3)
    first, second = run(scheduler), run(scheduler)
    assert rows(first) == [(0, 2, 1), (1, 2, 1), (2, 0, 6)]
    assert first.sample_rows == [0, 1]
    assert rows(second) == [(0, 3, 1), (1, 3, 1), (2, 6, 5), (3, 0, 1)]
    assert second.sample_rows == [0, 1, 2]
    assert rows(run(scheduler)) == [(0, 4, 1), (1, 4, 1), (2, 11, 1), (3, 1, 2)]


def test_an_unfinished_chunk_goes_on_before_anybody_is_admitted() -> None:
    scheduler = make(budget=4)
    add(scheduler, tokens(0, 8), 0)
    request = add(scheduler, tokens(20, 2), 1)
    assert rows(run(scheduler)) == [(0, 0, 4)]
    assert rows(run(scheduler)) == [(0, 4, 4)]
    assert request.status is WAITING
    assert rows(run(scheduler)) == [(0, 8, 1), (1, 0, 2)]


def test_a_prompt_with_one_token_left_is_a_decode_row_and_goes_to_the_front() -> None:
    scheduler = make(budget=16)
    add(scheduler, tokens(0, 4), 0, max_tokens=1)
    run(scheduler)
    add(scheduler, tokens(20, 6), 1)
    add(scheduler, [0, 1, 2, 3, 7], 2)
    step = begin(scheduler)
    assert rows(step) == [(2, 4, 1), (1, 0, 6)]
    assert (step.sample_rows, step.is_decode) == ([0, 1], False)


def test_a_chunk_of_one_token_that_does_not_sample_is_no_decode_step() -> None:
    scheduler = make(seqs=1, budget=1)
    add(scheduler, tokens(0, 2))
    chunk, decode = run(scheduler), run(scheduler)
    assert (rows(chunk), chunk.sample_rows, chunk.is_decode) == ([(0, 0, 1)], [], False)
    assert (rows(decode), decode.sample_rows, decode.is_decode) == ([(0, 1, 1)], [0], True)


def test_the_tightest_budget_still_serves_every_running_request() -> None:
    scheduler = make(seqs=3, budget=3)
    for i in range(3):
        add(scheduler, tokens(20 * i, 4), i)
    steps = [rows(run(scheduler)) for _ in range(6)]
    assert steps == [
        [(0, 0, 3)],
        [(0, 3, 1), (1, 0, 2)],
        [(0, 4, 1), (1, 2, 2)],
        [(0, 5, 1), (1, 4, 1), (2, 0, 1)],
        [(0, 6, 1), (1, 5, 1), (2, 1, 1)],
        [(0, 7, 1), (1, 6, 1), (2, 2, 1)],
    ]


def test_no_more_than_max_num_seqs_run_and_row_slots_are_reused() -> None:
    scheduler = make(seqs=2)
    requests = [add(scheduler, tokens(10 * i, 2), i, max_tokens=1 + 2 * i) for i in range(3)]
    assert rows(begin(scheduler)) == [(0, 0, 2), (1, 0, 2)]
    assert [request.row_slot for request in requests] == [0, 1, -1]
    run(scheduler)
    assert rows(begin(scheduler)) == [(1, 2, 1), (2, 0, 2)]
    assert [request.row_slot for request in requests] == [-1, 1, 0]
    assert [request.admission for request in requests] == [-1, 1, 2]


def test_admission_is_strictly_first_come_first_served() -> None:
    scheduler = make(blocks=4)
    add(scheduler, tokens(0, 8), 0)
    add(scheduler, tokens(20, 12), 1, max_tokens=1)  # does not fit beside 0
    add(scheduler, tokens(40, 2), 2)  # would fit
    assert rows(run(scheduler)) == [(0, 0, 8)]
    assert rows(run(scheduler)) == [(0, 8, 1)]
    assert [request.request_id for request in scheduler.waiting] == [1, 2]


def test_a_step_must_hold_one_token_of_every_running_request() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens is 3, max_num_seqs 4"):
        make(seqs=4, budget=3)


# Prefixes.


def test_a_shared_prefix_is_taken_from_the_index() -> None:
    scheduler = make()
    add(scheduler, tokens(0, 10), max_tokens=1)
    run(scheduler)
    request = add(scheduler, [*tokens(0, 8), 60, 61, 62], 1)
    assert rows(begin(scheduler)) == [(1, 8, 3)]
    assert request.num_cached_tokens == 8
    assert request.block_ids[:2] == [1, 2]
    assert (scheduler.pool.hits, scheduler.pool.queries) == (8, 21)


def test_a_full_prompt_hit_still_computes_one_token() -> None:
    scheduler = make()
    add(scheduler, tokens(0, 9), 0, max_tokens=1)
    run(scheduler)
    add(scheduler, tokens(0, 9), 1, max_tokens=1)
    assert rows(run(scheduler)) == [(1, 8, 1)]
    add(scheduler, tokens(0, 8), 2, max_tokens=1)  # both its blocks are known; the second is computed again
    assert rows(run(scheduler)) == [(2, 4, 4)]
    assert_empty(scheduler)


def test_two_running_requests_share_blocks_and_never_write_to_them() -> None:
    scheduler = make()
    first = add(scheduler, tokens(0, 9), 0)
    run(scheduler)
    second = add(scheduler, tokens(0, 9), 1)
    run(scheduler)
    assert (first.block_ids, second.block_ids) == ([1, 2, 3], [1, 2, 4])
    scheduler.finish(first, "abort")
    scheduler.check()
    assert second.block_ids == [1, 2, 4]


def test_a_block_is_shared_only_once_it_is_computed() -> None:
    scheduler = make(budget=8)
    add(scheduler, tokens(0, 16), 0, max_tokens=1)
    begin(scheduler)  # not committed
    assert len(scheduler.pool._index) == 0
    run(scheduler)
    assert len(scheduler.pool._index) == 2


def test_generated_tokens_are_shared_too() -> None:
    scheduler = make()
    add(scheduler, tokens(0, 3), 0, max_tokens=6)
    for _ in range(6):
        run(scheduler)
    request = add(scheduler, [0, 1, 2, *[TOKEN] * 7], 1)
    assert rows(begin(scheduler)) == [(1, 8, 2)]
    assert request.num_cached_tokens == 8


def test_another_salt_shares_nothing_and_the_same_salt_does() -> None:
    scheduler = make()
    for i, (salt, cached) in enumerate([(None, 0), ("a", 0), ("b", 0), ("a", 8), (None, 8)]):
        request = add(scheduler, tokens(0, 9), i, max_tokens=1, cache_salt=salt)
        run(scheduler)
        assert request.num_cached_tokens == cached


def test_a_request_that_opts_out_neither_reads_nor_feeds_the_index() -> None:
    scheduler = make()
    for i, (shares, cached) in enumerate([(False, 0), (True, 0), (False, 0), (True, 8)]):
        request = add(scheduler, tokens(0, 9), i, max_tokens=1, enable_prefix_caching=shares)
        run(scheduler)
        assert request.num_cached_tokens == cached
    assert (scheduler.pool.hits, scheduler.pool.queries) == (8, 18)


def test_a_digest_collision_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.block_pool.block_digest", lambda parent, token_ids, salt: b"the same for all")
    scheduler = make()
    for i in range(3):
        request = add(scheduler, tokens(10 * i, 9), i, max_tokens=1)
        run(scheduler)
        assert request.num_cached_tokens == 0


def test_matched_blocks_are_held_before_new_ones_evict_them() -> None:
    scheduler = make(blocks=4)
    add(scheduler, tokens(0, 9), 0, max_tokens=1)
    run(scheduler)
    add(scheduler, tokens(50, 5), 1, max_tokens=1)  # takes the two empty blocks; of its own, one is cached after it
    run(scheduler)
    assert (scheduler.pool.num_free, scheduler.pool.num_cached) == (1, 3)
    request = add(scheduler, tokens(0, 13), 2, max_tokens=1)
    run(scheduler)
    assert request.num_cached_tokens == 8
    assert scheduler.pool.evictions == 1


# Preemption.


def crowd(scheduler: Scheduler, count: int, **params: Any) -> list[Request]:
    """Requests of 4 prompt tokens each, all admitted."""
    requests = [add(scheduler, tokens(10 * i, 4), i, **params) for i in range(count)]
    run(scheduler)
    return requests


def test_the_newest_gives_way_and_waits_in_front() -> None:
    scheduler = make(blocks=5)
    oldest, middle, newest = crowd(scheduler, 3, max_tokens=8)
    last = add(scheduler, tokens(80, 4), 3)
    step = run(scheduler)  # each needs its second block; there are two more
    assert rows(step) == [(0, 4, 1), (1, 4, 1)]
    assert [request.status for request in (oldest, middle, newest, last)] == [RUNNING, RUNNING, WAITING, WAITING]
    assert list(scheduler.waiting) == [newest, last]
    assert (newest.num_computed_tokens, newest.block_ids) == (0, [])
    assert (newest.token_ids, scheduler.num_preemptions) == ([20, 21, 22, 23, TOKEN], 1)


def test_the_oldest_always_progresses_and_everybody_finishes() -> None:
    scheduler = make(blocks=3)
    requests = crowd(scheduler, 3, max_tokens=9)
    for _ in range(100):
        oldest = next((request for request in requests if request.status is not FINISHED), None)
        if oldest is None:
            break
        before = len(oldest.token_ids)
        run(scheduler)
        assert len(oldest.token_ids) == before + 1
    assert [request.output_token_ids for request in requests] == [[TOKEN] * 9] * 3
    assert scheduler.num_preemptions > 0
    assert_empty(scheduler)


def test_nobody_overtakes_a_preempted_request() -> None:
    scheduler = make(blocks=5)
    crowd(scheduler, 3)
    add(scheduler, tokens(80, 2), 3)
    assert rows(run(scheduler)) == [(0, 4, 1), (1, 4, 1)]
    assert scheduler.pool.num_available == 1  # request 3 would have fitted


def test_a_preempted_request_is_admitted_anew_and_finds_its_own_blocks() -> None:
    scheduler = make(blocks=5)
    oldest, middle, newest = crowd(scheduler, 3)
    first_admission = newest.admission
    run(scheduler)
    for request in (oldest, middle):
        scheduler.finish(request, "abort")
    assert rows(begin(scheduler)) == [(2, 4, 1)]  # its prompt block was still cached
    assert newest.admission > first_admission
    assert (newest.num_cached_tokens, scheduler.pool.hits) == (0, 0)  # they count the first admission


def test_preempted_in_the_middle_of_its_prompt() -> None:
    scheduler = make(blocks=6, budget=4)
    oldest = add(scheduler, tokens(0, 4), 0, max_tokens=20)
    run(scheduler)
    newest = add(scheduler, tokens(30, 16), 1, max_tokens=1)
    for i in range(4):
        assert rows(run(scheduler)) == [(0, 4 + i, 1), (1, 3 * i, 3)]
    assert rows(run(scheduler)) == [(0, 8, 1)]
    assert (newest.status, newest.num_computed_tokens) == (WAITING, 0)
    scheduler.finish(oldest, "abort")
    assert rows(run(scheduler)) == [(1, 12, 4)]
    assert newest.finish_reason == "length"


def test_who_does_not_fit_is_tried_again_when_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make(blocks=5)
    lookups: list[int] = []
    lookup = scheduler.pool.lookup
    monkeypatch.setattr(scheduler.pool, "lookup", lambda *args: lookups.append(1) or lookup(*args))
    add(scheduler, tokens(0, 9), 0, max_tokens=4)
    add(scheduler, tokens(20, 10), 1)
    for _ in range(3):
        run(scheduler)
    assert len(lookups) == 2 + 1  # at submission, and when request 0 had put its first blocks into the index
    run(scheduler)  # request 0 ends
    assert rows(run(scheduler)) == [(1, 0, 10)]


def test_waiting_behind_a_twin_is_no_obstacle_once_its_prefix_is_known() -> None:
    scheduler = make(blocks=5)
    add(scheduler, tokens(0, 13), 0, max_tokens=5)
    add(scheduler, tokens(0, 13), 1, max_tokens=1)  # alone 4 blocks, beside its twin 1
    assert rows(run(scheduler)) == [(0, 0, 13)]
    assert rows(run(scheduler)) == [(0, 13, 1), (1, 12, 1)]


# Sliding windows: 4 tokens a block, a query sees 6 tokens. With c computed, (c - 5) // 4 blocks are seen no more.


def test_blocks_behind_the_window_become_null_cells_and_are_used_again() -> None:
    scheduler = make(blocks=4, window=6)
    request = add(scheduler, tokens(0, 7), max_tokens=12, enable_prefix_caching=False)
    tables: list[list[int]] = []
    while request.status is not FINISHED:
        begin(scheduler)
        tables.append(list(request.block_ids))
        run(scheduler)
    assert tables == [
        [1, 2],  # positions 0-6
        [1, 2],  # 7 sees 2-7
        [1, 2, 3],  # 8 sees 3-8: the most that one token needs
        [0, 2, 3],  # 9 sees 4-9
        [0, 2, 3],
        [0, 2, 3],
        [0, 2, 3, 1],  # 12
        [0, 0, 3, 1],
        [0, 0, 3, 1],
        [0, 0, 3, 1],
        [0, 0, 3, 1, 2],  # 16
        [0, 0, 0, 1, 2],  # 17, the last one computed
    ]
    assert_empty(scheduler)


def test_a_prompt_longer_than_the_cache_runs_in_chunks_and_takes_blocks_as_it_goes() -> None:
    scheduler = make(blocks=4, budget=8, window=6)  # 16 tokens
    request = add(scheduler, tokens(0, 30), max_tokens=3)
    tables: list[list[int]] = []
    steps: list[Step] = []
    while scheduler.has_work:
        begin(scheduler)
        tables.append(list(request.block_ids))
        steps.append(run(scheduler))
    assert [rows(step)[0][1:] for step in steps] == [(0, 8), (8, 8), (16, 8), (24, 6), (30, 1), (31, 1)]
    assert [step.sample_rows for step in steps] == [[], [], [], [0], [0], [0]]
    assert tables == [
        [1, 2],
        [1, 2, 3, 4],
        [0, 0, 3, 4, 2, 1],  # 16 sees 11-16; both empty blocks are in the index: evicted tail first
        [0, 0, 0, 0, 2, 1, 4, 3],
        [0, 0, 0, 0, 0, 0, 4, 3],
        [0, 0, 0, 0, 0, 0, 4, 3],
    ]
    assert request.finish_reason == "length"


def test_blocks_are_taken_for_the_tokens_that_are_given_and_no_more() -> None:
    scheduler = make(budget=5, seqs=2, window=6)
    first = add(scheduler, tokens(40, 4), 0)
    run(scheduler)
    second = add(scheduler, tokens(0, 20), 1)
    for table in ([3], [3, 4]):
        assert rows(begin(scheduler))[1][2] == 4  # the fifth is the first one's
        assert second.block_ids == table
        run(scheduler)
    assert first.block_ids == [1, 2]


def test_a_chunk_is_as_long_as_there_are_blocks_for() -> None:
    scheduler = make(blocks=3, budget=16, window=6)
    add(scheduler, tokens(0, 30), max_tokens=1)
    chunks = []
    while scheduler.has_work:
        chunks += rows(run(scheduler))
    assert [count for _, _, count in chunks] == [12, 4, 4, 4, 4, 2]


def test_blocks_behind_the_window_stay_cached_and_are_evicted_in_order_of_release() -> None:
    scheduler = make(blocks=7, budget=8, window=6)
    first = add(scheduler, tokens(0, 24), 0, max_tokens=4)
    for _ in range(3):
        run(scheduler)
    assert first.block_ids == [0, 0, 0, 0, 5, 6]
    assert list(scheduler.pool._cached) == [2, 1, 4, 3]  # tail first within a step
    assert (scheduler.pool.num_free, scheduler.pool.num_used) == (1, 2)
    second = add(scheduler, tokens(40, 12), 1, max_tokens=1)
    begin(scheduler)
    assert (first.block_ids, second.block_ids) == ([0, 0, 0, 0, 5, 6, 7], [2, 1])
    assert list(scheduler.pool._cached) == [4, 3]
    run(scheduler)
    assert first.block_ids == [0, 0, 0, 0, 0, 6, 7]
    assert list(scheduler.pool._cached) == [4, 3, 5]
    scheduler.finish(first, "abort")
    assert (list(scheduler.pool._cached), scheduler.pool._free) == ([4, 3, 5, 6], [7])


def test_a_hit_gives_back_at_once_what_is_behind_the_window_and_keeps_it_from_eviction() -> None:
    scheduler = make(blocks=8, window=6)
    add(scheduler, tokens(0, 21), 0, max_tokens=1)
    for _ in range(2):
        run(scheduler)
    assert list(scheduler.pool._cached) == [2, 1, 4, 3, 5]
    request = add(scheduler, tokens(0, 22), 1, max_tokens=9)
    assert rows(begin(scheduler)) == [(1, 20, 2)]
    assert request.num_cached_tokens == 20
    assert request.block_ids == [0, 0, 0, 4, 5, 6]  # 20 sees 15-20
    assert list(scheduler.pool._cached) == [3, 2, 1]
    assert scheduler.pool.num_used == 3


def test_a_full_hit_needs_no_more_blocks_than_its_window() -> None:
    scheduler = make(blocks=6, window=6)
    add(scheduler, tokens(0, 21), 0, max_tokens=1)
    for _ in range(2):
        run(scheduler)
    other = add(scheduler, tokens(50, 3), 1, max_tokens=5)
    request = add(scheduler, tokens(0, 21), 2, max_tokens=1)
    assert rows(begin(scheduler)) == [(2, 20, 1), (1, 0, 3)]
    assert (other.block_ids, request.block_ids) == ([6], [0, 0, 0, 4, 5, 3])
    assert list(scheduler.pool._cached) == [2, 1]  # 3, the end of what is behind, was evicted
    run(scheduler)
    assert request.num_cached_tokens == 20


def test_what_was_evicted_behind_the_window_costs_later_requests_the_hit() -> None:
    scheduler = make(blocks=3, budget=4, window=6)
    for number, cached in enumerate([0, 0]):  # the first block of the chain went to its own end
        request = add(scheduler, tokens(0, 14), number, max_tokens=1)
        for _ in range(4):
            run(scheduler)
        assert request.num_cached_tokens == cached


def test_a_sick_request_takes_what_it_gave_back_out_of_the_index() -> None:
    scheduler = make(window=6)
    sick = add(scheduler, tokens(0, 21), 0)
    run(scheduler)
    run(scheduler, -1)
    assert isinstance(sick.error, NonFiniteLogits)
    assert scheduler.pool.num_free == 20
    again = add(scheduler, tokens(0, 21), 1)
    run(scheduler)
    assert again.num_cached_tokens == 0


def test_under_a_window_the_newest_gives_way_and_the_oldest_progresses() -> None:
    scheduler = make(blocks=5, seqs=2, window=6)  # each needs 3 at times
    requests = [add(scheduler, tokens(40 * i, 4), i, max_tokens=30) for i in range(2)]
    steps = 0
    while requests[0].status is not FINISHED:
        assert rows(run(scheduler))[0][0] == 0
        steps += 1
    assert steps == 30
    assert scheduler.num_preemptions > 0
    while scheduler.has_work:
        run(scheduler)
    assert [request.num_generated for request in requests] == [30, 30]
    assert_empty(scheduler)


def test_under_a_window_a_request_waits_until_its_prompt_can_be_computed() -> None:
    scheduler = make(blocks=4, seqs=2, budget=8, window=6)
    add(scheduler, tokens(0, 5), 0, max_tokens=3)
    add(scheduler, tokens(40, 20), 1, max_tokens=1)  # needs 3 at times, 2 are left
    assert rows(run(scheduler)) == [(0, 0, 5)]
    assert rows(run(scheduler)) == [(0, 5, 1)]
    assert rows(run(scheduler)) == [(0, 6, 1)]
    assert rows(run(scheduler)) == [(1, 0, 8)]


def test_who_ends_during_a_step_that_would_leave_blocks_behind_holds_nothing() -> None:
    scheduler = make(budget=8, window=6)
    request = add(scheduler, tokens(0, 20))
    run(scheduler)
    step = begin(scheduler)
    scheduler.finish(request, "abort")
    assert scheduler.commit(step, [TOKEN] * len(step.sample_rows)) == []
    assert request.block_ids == []
    assert_empty(scheduler)


def test_a_dropped_step_under_a_window_changes_no_table() -> None:
    scheduler = make(blocks=4, budget=8, window=6)
    request = add(scheduler, tokens(0, 20))
    run(scheduler)
    first = rows(begin(scheduler)), list(request.block_ids)
    assert (rows(begin(scheduler)), list(request.block_ids)) == first == ([(0, 8, 8)], [1, 2, 3, 4])


@pytest.mark.parametrize(("max_tokens", "window", "fits"), [(5, 6, True), (6, 6, False), (50, 6, False), (50, 5, True)])
def test_a_request_is_refused_only_if_not_even_its_window_fits(max_tokens: int, window: int, fits: bool) -> None:
    """Into two blocks of 4: the query at 8 sees positions 3-8 of a window of 6, which lie in three, and 4-8 of 5."""
    scheduler = make(blocks=2, window=window)
    if fits:
        request = add(scheduler, tokens(0, 4), max_tokens=max_tokens)
        while scheduler.has_work:
            run(scheduler)
        assert request.num_generated == max_tokens
    else:
        problem = f"{4 + max_tokens} tokens, seen 6 at a time, need 3 KV blocks; the cache has 2 of 4 tokens"
        with pytest.raises(OutOfBlocks, match=problem):
            add(scheduler, tokens(0, 4), max_tokens=max_tokens)
    assert_empty(scheduler)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("request.block_ids[0] = 5", "block 5 has 0 references"),
        ("request.block_ids[0] = pool.allocate(1)[0]", "null cells"),
        ("pool.release([request.block_ids[1]]); request.block_ids[1] = 0", "null cells"),
        ("request.block_ids += pool.allocate(4)", "more than the 4 blocks"),
        ("pool.release([request.block_ids.pop()])", "does not cover"),
        ("scheduler._handed_out.counts[0] = 9", "without a block"),
    ],
)
def test_check_sees_damage_to_a_windowed_table(damage: str, problem: str) -> None:
    scheduler = make(budget=6, window=6)
    request = add(scheduler, tokens(0, 30), enable_prefix_caching=False)
    for _ in range(2):
        run(scheduler)
    assert (request.block_ids, request.num_computed_tokens) == ([0, 2, 3], 12)
    if "_handed_out" in damage:
        begin(scheduler)
    exec(damage, {"scheduler": scheduler, "pool": scheduler.pool, "request": request})
    with pytest.raises(RuntimeError, match=problem):
        scheduler.check()


# Refusals.


@pytest.mark.parametrize(("max_tokens", "fits"), [(12, True), (13, True), (14, False)])
def test_a_request_too_big_for_the_cache_is_refused_with_need_and_have(max_tokens: int, fits: bool) -> None:
    scheduler = make(blocks=5)  # 20 tokens of KV: a request of 8 + 13 tokens computes 20 of them
    if fits:
        request = add(scheduler, tokens(0, 8), max_tokens=max_tokens)
        while scheduler.has_work:
            run(scheduler)
        assert request.num_generated == max_tokens
    else:
        with pytest.raises(OutOfBlocks, match="22 tokens need 6 KV blocks; the cache has 5 of 4 tokens"):
            add(scheduler, tokens(0, 8), max_tokens=max_tokens)
    assert_empty(scheduler)


def test_max_model_len_limits_the_need() -> None:
    scheduler = make(blocks=5, max_model_len=21)
    assert add(scheduler, tokens(0, 8), max_tokens=1000).max_length == 21


@pytest.mark.parametrize("length", [8, 9])
def test_a_prompt_that_leaves_no_room_is_refused(length: int) -> None:
    scheduler = make(max_model_len=8)
    add(scheduler, tokens(0, 7))
    with pytest.raises(PromptTooLong, match=f"the prompt has {length} tokens; max_model_len is 8"):
        add(scheduler, tokens(0, length))
    assert scheduler.num_waiting == 1


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ParamError, match="the prompt has no tokens"):
        add(make(), [])


# How a request ends.

LIMIT = 4  # max_tokens below


@pytest.mark.parametrize(
    ("params", "sampled", "ending"),
    [
        ({}, [1, EOS], ("stop", None, [1, EOS])),
        ({}, [EOS], ("stop", None, [EOS])),
        ({}, [1, 2, 3, 4], ("length", None, [1, 2, 3, 4])),
        ({}, [1, 2, 3, EOS], ("stop", None, [1, 2, 3, EOS])),
        ({"ignore_eos": True}, [EOS, 1, EOS, 2], ("length", None, [EOS, 1, EOS, 2])),
        ({"stop_token_ids": [7, 8]}, [1, 8], ("stop", 8, [1, 8])),
        ({"stop_token_ids": [EOS]}, [EOS], ("stop", None, [EOS])),
        ({"stop_token_ids": [EOS], "ignore_eos": True}, [EOS], ("stop", EOS, [EOS])),
        ({"min_tokens": 2}, [EOS, EOS], ("stop", None, [EOS, EOS])),
        ({"min_tokens": 3, "stop_token_ids": [7]}, [7, EOS, 7], ("stop", 7, [7, EOS, 7])),
        ({"min_tokens": 4}, [EOS, EOS, EOS, 5], ("length", None, [EOS, EOS, EOS, 5])),
        ({"max_tokens": 1}, [5], ("length", None, [5])),
        ({"max_tokens": 1}, [EOS], ("stop", None, [EOS])),
        ({}, [1, -1], ("error", None, [1])),
        ({"min_tokens": 3}, [-1], ("error", None, [])),
    ],
)
def test_ending(params: dict[str, Any], sampled: list[int], ending: tuple[str, int | None, list[int]]) -> None:
    scheduler = make()
    request = add(scheduler, tokens(0, 3), **{"max_tokens": LIMIT} | params)
    for i, token in enumerate(sampled):
        assert request.status is not FINISHED, f"ended before token {i}"
        run(scheduler, token)
    assert (request.finish_reason, request.stop_reason, request.output_token_ids) == ending
    assert_empty(scheduler)


def test_logits_that_are_not_finite_end_one_request_and_are_named() -> None:
    scheduler = make()
    sick, healthy = add(scheduler, tokens(0, 9), 7), add(scheduler, tokens(20, 4), 8)
    step = begin(scheduler)
    assert scheduler.commit(step, [-1, TOKEN]) == [sick, healthy]
    assert isinstance(sick.error, NonFiniteLogits)
    assert str(sick.error) == "request 7: the logits for position 9 are not finite"
    assert (healthy.status, healthy.error) == (RUNNING, None)
    again = add(scheduler, tokens(0, 9), 9)
    run(scheduler)
    assert again.num_cached_tokens == 0  # nobody reads what the sick request computed


def test_what_a_sick_request_had_from_others_stays_cached() -> None:
    scheduler = make()
    for i, token in enumerate((TOKEN, -1)):
        add(scheduler, [*tokens(0, 4), *tokens(20 + 10 * i, 5)], i, max_tokens=1)
        run(scheduler, token)
    request = add(scheduler, [*tokens(0, 4), *tokens(30, 5)], 2)
    run(scheduler)
    assert request.num_cached_tokens == 4


@pytest.mark.parametrize("moment", ["waiting", "prefilling", "decoding", "during a step", "finished"])
def test_abort_gives_everything_back_at_once_and_can_be_repeated(moment: str) -> None:
    scheduler = make(budget=4)
    other = add(scheduler, tokens(50, 2), 0, max_tokens=6)
    run(scheduler)
    used = scheduler.pool.num_used
    request = add(scheduler, tokens(0, 6), 1, max_tokens=1 if moment == "finished" else 20)
    steps = {"waiting": 0, "prefilling": 1, "decoding": 3, "during a step": 2, "finished": 2}[moment]
    for _ in range(steps):
        run(scheduler)
    step = begin(scheduler) if moment == "during a step" else None
    for _ in range(2):
        scheduler.finish(request, "abort")
        scheduler.check()
    if step is not None:
        assert scheduler.commit(step, [TOKEN] * len(step.sample_rows)) == [other]
    assert request.finish_reason == ("length" if moment == "finished" else "abort")
    assert scheduler.pool.num_used - used == len(other.block_ids) - 1
    while scheduler.has_work:
        run(scheduler)
    assert other.output_token_ids == [TOKEN] * 6
    assert_empty(scheduler)


def test_a_stop_found_elsewhere_ends_a_request() -> None:
    scheduler = make()
    request = add(scheduler, tokens(0, 3))
    run(scheduler)
    scheduler.finish(request, "stop", "\n\n")
    assert (request.finish_reason, request.stop_reason) == ("stop", "\n\n")
    assert_empty(scheduler)


# Steps that fail.


def test_a_dropped_step_is_handed_out_again() -> None:
    scheduler = make(budget=8)
    add(scheduler, tokens(0, 11), 0)
    add(scheduler, tokens(20, 3), 1)
    first = begin(scheduler)
    again = begin(scheduler)
    assert rows(first) == rows(again) == [(0, 0, 8)]
    with pytest.raises(ValueError, match="order in which they were handed out"):
        scheduler.commit(first, [])
    scheduler.commit(again, [])
    dropped, again = begin(scheduler), begin(scheduler)
    assert rows(dropped) == rows(again) == [(0, 8, 3), (1, 0, 3)]


def test_a_step_is_committed_once_and_with_a_token_for_each_row_that_samples() -> None:
    scheduler = make()
    request = add(scheduler, tokens(0, 3))
    step = begin(scheduler)
    with pytest.raises(ValueError, match="2 tokens for 1 rows"):
        scheduler.commit(step, [1, 2])
    scheduler.commit(step, [1])
    with pytest.raises(ValueError, match="each once"):
        scheduler.commit(step, [2])
    assert request.output_token_ids == [1]


def test_a_failed_step_ends_its_requests_with_the_cause_and_nobody_else() -> None:
    scheduler = make(seqs=2)
    requests = [add(scheduler, tokens(10 * i, 2), i, max_tokens=1) for i in range(3)]
    step, cause = begin(scheduler), OstinatoError("the device is on fire")
    scheduler.finish(requests[0], "abort")
    scheduler.fail(step, cause)
    scheduler.check()
    assert [request.finish_reason for request in requests] == ["abort", "error", None]
    assert requests[1].error is cause
    assert rows(run(scheduler)) == [(2, 0, 2)]
    assert requests[2].finish_reason == "length"
    assert_empty(scheduler)


# Every invariant that `check` states, broken once.


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("scheduler._free_slots.clear()", "row slots"),
        ("scheduler._free_slots.append(0)", "row slots"),
        ("first.row_slot = 1", "row slots"),
        ("scheduler.running.reverse()", "ranks"),
        ("second.admission = first.admission", "admissions"),
        ("first.admission = second.admission", "admissions"),
        ("first.status = WAITING", "not running"),
        ("first.num_computed_tokens = len(first.token_ids)", "computed < tokens"),
        ("first.max_length = 6", "computed < tokens"),
        ("first.max_length = 65", "computed < tokens"),
        ("pool.release([first.block_ids.pop()])", "does not cover"),
        ("first.block_ids += pool.allocate(1)", "does not cover"),
        ("pool.release([second.block_ids.pop()])", "does not cover"),
        ("first.num_computed_tokens = first.num_scheduled_tokens = 0", "shared or in the index"),
        ("pool.register(2, b'digest', b'', [4, 5, 6, 7])", "shared or in the index"),
        ("first.digests.append(b'digest')", "not full"),
        ("waiting.num_computed_tokens = 1", "holds something"),
        ("waiting.block_ids = [1]", "holds something"),
        ("waiting.row_slot = 2", "holds something"),
        ("waiting.admission = 2", "holds something"),
        ("waiting.status = FINISHED", "holds something"),
        ("scheduler._handed_out.num_tokens = 8", "a step of 8 tokens"),
        ("scheduler._handed_out.counts[1] = 0", "in rows of"),
        ("scheduler._handed_out.requests.pop()", "without a row"),
        ("pool._free.pop()", "block pool"),
        ("pool.release([first.block_ids[0]]); first.block_ids[0] = 0", "null cells"),
        ("scheduler._handed_out.counts[1] = 99", "without a block"),
    ],
)
def test_check_sees(damage: str, problem: str) -> None:
    scheduler = make(seqs=3, budget=7)
    first, second, waiting = (add(scheduler, tokens(20 * i, n), i) for i, n in enumerate([5, 12, 2]))
    run(scheduler)
    begin(scheduler)
    assert [request.num_computed_tokens for request in (first, second, waiting)] == [5, 2, 0]
    names = {"scheduler": scheduler, "pool": scheduler.pool, "first": first, "second": second, "waiting": waiting}
    exec(damage, names | {"WAITING": WAITING, "FINISHED": FINISHED})
    with pytest.raises(RuntimeError, match=problem):
        scheduler.check()


def test_a_request_describes_itself() -> None:
    scheduler = make()
    request = add(scheduler, tokens(0, 5), 3)
    run(scheduler)
    assert repr(request) == "<Request 3 running: 5+1 tokens, 5 computed, blocks [1, 2]>"


# Priorities: the lower number goes first, the last in line gives way.


def ranked(scheduler: Scheduler, *priorities: int) -> list[Request]:
    """A request of four tokens for each priority, in that order of arrival."""
    requests = []
    for number, priority in enumerate(priorities):
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        requests.append(Request(number, tokens(20 * number, 4), params, priority=priority))
        scheduler.add(requests[-1])
        scheduler.check()
    return requests


def test_the_lower_number_is_admitted_first_and_equals_in_order_of_arrival() -> None:
    scheduler = make(seqs=2)
    ranked(scheduler, 3, 0, 3, -1, 0)
    assert [request.request_id for request in scheduler.waiting] == [3, 1, 4, 0, 2]
    assert [row[0] for row in rows(run(scheduler))] == [3, 1]


def test_nobody_is_preempted_for_somebody_who_waits() -> None:
    scheduler = make(seqs=1)
    (low,) = ranked(scheduler, 5)
    run(scheduler)
    urgent = Request(9, [1, 2], SamplingParams(max_tokens=8), priority=-5)
    scheduler.add(urgent)
    assert rows(run(scheduler)) == [(0, 4, 1)]
    assert (low.status, urgent.status, scheduler.num_preemptions) == (RUNNING, WAITING, 0)


def test_the_lowest_priority_gives_way_the_youngest_of_them_first() -> None:
    scheduler = make(blocks=4)
    requests = ranked(scheduler, 1, 1, 0, 0)
    run(scheduler)  # a block each; each needs a second one now
    assert [row[0] for row in rows(run(scheduler))] == [2, 3]
    assert [request.status for request in requests] == [WAITING, WAITING, RUNNING, RUNNING]
    assert scheduler.waiting == requests[:2]
    assert scheduler.num_preemptions == 2


def test_a_request_admitted_late_runs_before_those_of_lower_priority() -> None:
    scheduler = make(blocks=4, seqs=3)
    low, other = ranked(scheduler, 1, 1)
    run(scheduler)
    urgent = Request(9, tokens(80, 4), SamplingParams(max_tokens=8), priority=0)
    scheduler.add(urgent)
    run(scheduler)  # two blocks for each of the first, none is left for the urgent one
    assert (low.status, other.status, urgent.status) == (RUNNING, RUNNING, WAITING)
    scheduler.finish(other, "abort")
    run(scheduler)
    assert scheduler.running == [urgent, low]


def test_under_a_window_a_long_prompt_of_high_priority_leaves_the_others_their_row() -> None:
    scheduler = make(blocks=12, window=6, budget=6)
    (low,) = ranked(scheduler, 1)
    run(scheduler)
    urgent = Request(9, tokens(20, 20), SamplingParams(max_tokens=4, ignore_eos=True), priority=0)
    scheduler.add(urgent)
    steps = [rows(run(scheduler)) for _ in range(5)]
    assert steps == [[(0, 4 + n, 1), (9, 5 * n, 5)] for n in range(4)] + [[(9, 20, 1), (0, 8, 1)]]
    assert (low.num_generated, urgent.num_generated) == (6, 2)
