"""The scheduler with steps in flight, one claim a test: what may be launched, what waits, what is thrown away."""

from __future__ import annotations

from typing import Any

import pytest

from ostinato.block_pool import BlockPool
from ostinato.request import Request, RequestStatus
from ostinato.sampling_params import SamplingParams
from ostinato.scheduler import Scheduler
from ostinato.step import Step

EOS = 99


def make(blocks: int = 20, size: int = 4, seqs: int = 4, budget: int = 16, window: int | None = None) -> Scheduler:
    return Scheduler(BlockPool(blocks + 1, size), seqs, budget, 64, window, max_in_flight=2)


def add(scheduler: Scheduler, length: int, request_id: int = 0, **params: Any) -> Request:
    prompt = list(range(20 * request_id, 20 * request_id + length))
    request = Request(request_id, prompt, SamplingParams(**{"max_tokens": 8} | params), eos_token_ids=frozenset([EOS]))
    scheduler.add(request)
    return request


def launch(scheduler: Scheduler) -> Step:
    step = scheduler.next_step()
    assert step is not None
    scheduler.check()
    scheduler.launch(step)
    scheduler.check()
    return step


def land(scheduler: Scheduler, *tokens: int) -> None:
    scheduler.commit(scheduler.in_flight[0], tokens)
    scheduler.check()


def rows(step: Step) -> list[tuple[int, int, int]]:
    ids = [request.request_id for request in step.requests]
    return list(zip(ids, step.starts, step.counts, strict=True))


def test_the_next_token_is_launched_before_the_last_is_known() -> None:
    scheduler = make()
    request = add(scheduler, 5)
    assert rows(launch(scheduler)) == [(0, 0, 5)]
    ahead = launch(scheduler)
    assert rows(ahead) == [(0, 5, 1)]
    assert ahead.is_decode
    counts = request.num_computed_tokens, request.num_scheduled_tokens, request.num_pending, request.num_drawn
    assert counts == (0, 6, 2, 2)
    assert scheduler.next_step() is None  # two are in flight
    land(scheduler, 50)
    assert request.output_token_ids == [50]
    assert rows(launch(scheduler)) == [(0, 6, 1)]


def test_steps_land_in_the_order_of_their_launch_and_once() -> None:
    scheduler = make()
    add(scheduler, 5)
    first, second = launch(scheduler), launch(scheduler)
    with pytest.raises(ValueError, match="in the order in which they were handed out"):
        scheduler.commit(second, [1])
    scheduler.commit(first, [1])
    with pytest.raises(ValueError, match="in the order in which they were handed out"):
        scheduler.commit(first, [1])
    with pytest.raises(ValueError, match="launched, and only once"):
        scheduler.launch(second)


def test_the_token_behind_an_end_is_thrown_away_and_its_blocks_are_free() -> None:
    scheduler = make()
    request = add(scheduler, 4)
    launch(scheduler)
    launch(scheduler)
    land(scheduler, EOS)
    assert (request.status, request.finish_reason) == (RequestStatus.FINISHED, "stop")
    assert scheduler.pool.num_used == 0
    land(scheduler, 50)
    assert request.output_token_ids == [EOS]
    assert not scheduler.has_work


def test_a_request_that_ends_by_length_has_no_row_too_many() -> None:
    scheduler = make()
    ending, other = add(scheduler, 2, 0, max_tokens=2), add(scheduler, 2, 1)
    launch(scheduler)
    assert rows(launch(scheduler)) == [(0, 2, 1), (1, 2, 1)]
    land(scheduler, 50, 60)
    assert rows(launch(scheduler)) == [(1, 3, 1)]
    land(scheduler, 51, 61)
    assert ending.finish_reason == "length"
    assert other.output_token_ids == [60, 61]


def test_a_new_request_is_admitted_beside_steps_in_flight() -> None:
    scheduler = make()
    add(scheduler, 3, 0)
    launch(scheduler)
    add(scheduler, 3, 1)
    assert rows(launch(scheduler)) == [(0, 3, 1), (1, 0, 3)]


def test_a_slot_goes_to_another_request_while_its_last_owner_is_in_flight() -> None:
    scheduler = make(seqs=1)
    first, second = add(scheduler, 3, 0), add(scheduler, 3, 1)
    launch(scheduler)
    launch(scheduler)
    land(scheduler, EOS)
    assert rows(launch(scheduler)) == [(1, 0, 3)]
    assert (first.row_slot, second.row_slot) == (-1, 0)
    land(scheduler, 50)
    land(scheduler, 60)
    assert (first.output_token_ids, second.output_token_ids) == ([EOS], [60])


def test_nobody_is_preempted_while_a_step_is_in_flight() -> None:
    scheduler = make(blocks=4, seqs=2)
    first, second = add(scheduler, 7, 0), add(scheduler, 7, 1)
    launch(scheduler)
    launch(scheduler)  # the eighth tokens fill two blocks each; a ninth needs a fifth block
    land(scheduler, 50, 60)
    assert scheduler.next_step() is None
    assert scheduler.num_preemptions == 0
    land(scheduler, 51, 61)
    assert rows(launch(scheduler)) == [(0, 8, 1)]
    assert (scheduler.num_preemptions, second.status) == (1, RequestStatus.WAITING)
    assert second.output_token_ids == [60, 61]
    assert first.status is RequestStatus.RUNNING


def test_blocks_are_shared_once_their_tokens_are_known() -> None:
    scheduler = make()
    request = add(scheduler, 7)
    launch(scheduler)
    launch(scheduler)
    assert scheduler.pool.registered(request.digests) == []
    land(scheduler, 50)
    assert scheduler.pool.registered(request.digests) == request.block_ids[:1]  # seven computed: one block is full
    land(scheduler, 51)
    assert scheduler.pool.registered(request.digests) == request.block_ids[:2]


def test_dropped_steps_are_computed_again() -> None:
    scheduler = make()
    request = add(scheduler, 8)
    launch(scheduler)
    launch(scheduler)
    assert len(request.block_ids) == 3
    scheduler.drop_in_flight()
    scheduler.check()
    assert (request.num_scheduled_tokens, request.num_pending, len(request.block_ids)) == (0, 0, 2)
    assert rows(launch(scheduler)) == [(0, 0, 8)]


def test_an_aborted_request_leaves_its_flight_without_effect() -> None:
    scheduler = make()
    gone, other = add(scheduler, 3, 0), add(scheduler, 3, 1)
    launch(scheduler)
    launch(scheduler)
    scheduler.finish(gone, "abort")
    scheduler.check()
    land(scheduler, 50, 60)
    land(scheduler, 51, 61)
    assert (gone.output_token_ids, other.output_token_ids) == ([], [60, 61])


def test_cells_behind_a_window_go_back_when_their_step_lands() -> None:
    scheduler = make(window=4)
    request = add(scheduler, 10)
    launch(scheduler)
    launch(scheduler)
    assert all(request.block_ids)
    land(scheduler, 50)
    assert request.block_ids[:1] == [0]
    assert all(request.block_ids[1:])
