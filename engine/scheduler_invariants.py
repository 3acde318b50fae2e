"""What is true of a scheduler between any two of its calls, as code. Reads everything, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ostinato.request import Request, RequestStatus
from ostinato.step import Step
from ostinato.window import blocks_behind, blocks_for, most_blocks

if TYPE_CHECKING:
    from ostinato.scheduler import Scheduler

RUNNING = RequestStatus.RUNNING


def problems(scheduler: Scheduler, free_slots: Sequence[int], handed_out: Step | None) -> Iterator[str]:
    """Each broken invariant in a line; the pool checks its own."""
    slots = [request.row_slot for request in scheduler.running] + list(free_slots)
    if sorted(slots) != list(range(scheduler.max_num_seqs)):
        yield f"row slots in use and free are {slots}"
    admissions = [request.admission for request in scheduler.running]
    if len({*admissions}) != len(admissions):
        yield f"admissions of the running requests are {admissions}"
    for line in (scheduler.running, scheduler.waiting):
        ranks = [request.rank() for request in line]
        if ranks != sorted(ranks):
            yield f"ranks (priority, number) are {ranks} where they should be in order"
    for request in scheduler.running:
        yield from (f"{problem}: {request}" for problem in _of_running(scheduler, request))
    for request in scheduler.waiting:
        held = (request.num_computed_tokens, request.num_scheduled_tokens, request.num_pending)
        if request.status is not RequestStatus.WAITING or held != (0, 0, 0) or _holds(request):
            yield f"waiting, yet it holds something: {request}"
    if len(scheduler.in_flight) > scheduler.max_in_flight:
        yield f"{len(scheduler.in_flight)} steps in flight; at most {scheduler.max_in_flight} may be"
    if handed_out is not None:
        yield from _of_step(scheduler, handed_out)


def _holds(request: Request) -> bool:
    return (request.block_ids, request.row_slot, request.admission) != ([], -1, -1)


def _of_step(scheduler: Scheduler, step: Step) -> Iterator[str]:
    if step.num_tokens > scheduler.max_num_batched_tokens or 0 in step.counts:
        yield f"a step of {step.num_tokens} tokens in rows of {step.counts}"
    with_row, full = set(step.requests), step.num_tokens == scheduler.max_num_batched_tokens
    for request in scheduler.running if not full or scheduler.max_in_flight == 1 else ():
        if request not in with_row and not (request.num_pending and request.num_tokens >= request.max_length):
            yield f"without a row in the step: {request}"
    size = scheduler.pool.block_size
    ends = zip(step.requests, step.starts, step.counts, strict=True)
    if any(r.status is RUNNING and blocks_for(start + count, size) > len(r.block_ids) for r, start, count in ends):
        yield "a token of the step without a block"


def _of_running(scheduler: Scheduler, request: Request) -> Iterator[str]:
    size, window = scheduler.pool.block_size, scheduler.window
    computed, scheduled, num_tokens = request.num_computed_tokens, request.num_scheduled_tokens, request.num_tokens
    if request.status is not RUNNING:
        yield "in the running list, not running"
    if not computed < len(request.token_ids) < request.max_length <= scheduler.max_model_len:
        yield "computed < tokens < max_length <= max_model_len does not hold"
    if not computed <= scheduled < num_tokens <= request.max_length:
        yield "computed <= scheduled < tokens with those in flight <= max_length does not hold"
    yield from _of_flight(scheduler, request)
    # A block more is taken by the next step if the token just generated crossed a boundary.
    covered = num_tokens - 1 if window is None else scheduled
    if not blocks_for(covered, size) <= len(request.block_ids) <= blocks_for(num_tokens, size):
        yield "the block table does not cover the tokens"
    behind = blocks_behind(computed, window, size)
    if any(request.block_ids[:behind]) or not all(request.block_ids[behind:]):
        yield "the null cells are not those behind the window"
    if window is not None:
        tokens = scheduler.max_num_batched_tokens * scheduler.max_in_flight
        most = most_blocks(1, tokens, window, size)
        if len(request.block_ids) - behind > most:
            yield f"more than the {most} blocks of a window and of the steps in flight are held"
    if not all(map(scheduler.pool.is_exclusive, request.block_ids[computed // size :])):
        yield "a block that is still to be written is shared or in the index"
    if len(request.digests) > len(request.token_ids) // size:
        yield "a digest of a block that is not full"


def _of_flight(scheduler: Scheduler, request: Request) -> Iterator[str]:
    """The request's counts are those of the steps in flight."""
    computing = sampling = 0
    for step in scheduler.in_flight:
        for row, (other, count) in enumerate(zip(step.requests, step.counts, strict=True)):
            if other is request:
                computing += count
                sampling += row in step.sample_rows
    if (request.num_scheduled_tokens - request.num_computed_tokens, request.num_pending) != (computing, sampling):
        yield f"steps in flight compute {computing} and sample {sampling} tokens, yet {request.num_pending} are pending"
