"""Packing against a naive oracle: every field of every step, over random lives of requests under the real scheduler."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from deferred_stream import DeferredStream
from ostinato.arena import Arena
from ostinato.block_pool import BlockPool
from ostinato.graphs.streams import HostStream
from ostinato.models.step_inputs import Sampling
from ostinato.request import Request, RequestStatus
from ostinato.sampling_buffers import MAX_BLOCKED_IDS
from ostinato.sampling_params import SamplingParams
from ostinato.scheduler import Scheduler
from ostinato.step import Step
from ostinato.step_buffers import PackedStep, StepBuffers

CPU = torch.device("cpu")
RAN = HostStream(CPU, emulate=False).submit(lambda: None)
EOS = frozenset({5, 9})
NO_TOP_K = 1 << 24
VOCABULARY = 200
GARBAGE = 777
"""What a step that failed may leave on the device."""


def make_buffers(sizes: Sizes) -> StepBuffers:
    limits = (sizes.max_num_seqs, sizes.budget, sizes.block_size, sizes.table_width, VOCABULARY)
    stream = DeferredStream(eagerness=1.0) if sizes.separate else HostStream(CPU, emulate=False)
    return StepBuffers(*limits, stream, fixed_width=sizes.fixed_width)


def bring_over(buffers: StepBuffers, packed: PackedStep) -> None:
    """What the device does before a step: the copies, and in a decode step the cells that come with it."""
    packed.upload()
    rows = buffers.row_inputs(packed.rows)
    if not packed.tokens and rows.table_at is not None and rows.table_value is not None:
        buffers.state.block_table.view(-1)[rows.table_at] = rows.table_value


@dataclass
class Sizes:
    max_num_seqs: int = 4
    budget: int = 12
    block_size: int = 3
    max_model_len: int = 40
    num_blocks: int = 30
    window: int | None = None
    fixed_width: bool = False
    separate: bool = False

    @property
    def table_width(self) -> int:
        return max(3, -(-self.max_model_len // self.block_size))


class Machine:
    """Scheduler, buffers, and a device that does nothing but feed tokens back."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.pool = BlockPool(sizes.num_blocks, sizes.block_size)
        self.scheduler = Scheduler(self.pool, sizes.max_num_seqs, sizes.budget, sizes.max_model_len, sizes.window)
        self.buffers = make_buffers(sizes)
        self.held: dict[int, tuple[int, int]] = {}  # slot: (admission, position) of the token on the device
        self.submitted = 0

    def add(self, prompt: list[int], *, seed: int = 0, **params: object) -> Request:
        request = Request(self.submitted, prompt, SamplingParams(**params), seed, EOS)  # type: ignore[arg-type]
        self.submitted += 1
        self.scheduler.add(request)
        return request

    def pack(self) -> Step:
        """The next step, packed and compared field by field."""
        step = self.scheduler.next_step()
        assert step is not None
        self.packed = self.buffers.pack(step)
        bring_over(self.buffers, self.packed)
        if step.is_decode:
            check_decode(self, step)
        else:
            check_mixed(self, step, self.packed.tokens)
        check_common(self, step)
        return step

    def run(self, tokens: list[int] | None = None) -> Step:
        """Pack a step, check it, feed ``tokens`` (or 0, 1, 2 …) back and commit."""
        step = self.pack()
        tokens = list(range(len(step.sample_rows))) if tokens is None else tokens
        last_token = self.buffers.state.last_token
        last_token[self.sizes.max_num_seqs] = GARBAGE  # padded rows write to the spare slot
        for row, token in zip(step.sample_rows, tokens, strict=True):
            request = step.requests[row]
            last_token[request.row_slot] = token
            self.held[request.row_slot] = request.admission, step.starts[row] + step.counts[row]
        self.buffers.launched(step, self.packed, RAN)
        self.scheduler.commit(step, tokens)
        return step

    def drop(self) -> Step:
        """Pack a step whose execution then fails half-way."""
        step = self.pack()
        for request in step.requests:
            self.buffers.state.last_token[request.row_slot] = GARBAGE
        self.buffers.forget()
        self.held.clear()
        return step

    def is_held(self, request: Request, position: int) -> bool:
        return self.held.get(request.row_slot) == (request.admission, position)


# The oracle: every field from the requests alone, nothing remembered.


def slot_of(request: Request, position: int, block_size: int) -> int:
    return request.block_ids[position // block_size] * block_size + position % block_size


def check_decode(machine: Machine, step: Step) -> None:
    buffers, sizes = machine.buffers, machine.sizes
    rows, padding = buffers.row_inputs(sizes.max_num_seqs), sizes.max_num_seqs - len(step.requests)
    pairs = list(zip(step.requests, step.starts, strict=True))
    assert rows.row_slot.tolist() == [request.row_slot for request, _ in pairs] + [buffers.spare_slot] * padding
    assert rows.positions.tolist() == step.starts + [0] * padding
    assert rows.context_lens.tolist() == [start + 1 for start in step.starts] + [1] * padding
    slots = [slot_of(request, start, sizes.block_size) for request, start in pairs]
    assert rows.slot_mapping.tolist() == slots + [0] * padding
    fed = torch.where(rows.token_ids >= 0, rows.token_ids, buffers.state.last_token[rows.row_slot]).tolist()
    assert fed[: len(pairs)] == [request.token_ids[start] for request, start in pairs]
    held = [machine.is_held(request, start) for request, start in pairs]
    assert rows.token_ids.lt(0).tolist() == held + [True] * padding
    check_sampling(machine, step.requests)


def check_mixed(machine: Machine, step: Step, tokens: int) -> None:
    buffers, sizes = machine.buffers, machine.sizes
    assert tokens == max(2, step.num_tokens)
    inputs = buffers.token_inputs(tokens)
    want: list[tuple[int, int, int, int]] = []  # token, where it comes from, position, slot
    for request, start, count in zip(step.requests, step.starts, step.counts, strict=True):
        for position in range(start, start + count):
            source = request.row_slot if count == 1 and machine.is_held(request, position) else -1
            slot = slot_of(request, position, sizes.block_size)
            want.append((request.token_ids[position], source, position, slot))
    want += [(0, -1, 0, 0)] * (tokens - step.num_tokens)
    fed = buffers.state.last_token[inputs.token_slot.clamp_min(0)]
    ids = torch.where(inputs.token_slot >= 0, fed, inputs.token_ids)
    got = (ids, inputs.token_slot, inputs.positions, inputs.slot_mapping)
    assert list(zip(*(column.tolist() for column in got), strict=True)) == want
    rows, padding = step.requests, sizes.max_num_seqs - len(step.requests)
    assert inputs.row_slot.tolist() == [request.row_slot for request in rows] + [buffers.spare_slot] * padding
    ends = list(accumulate(step.counts))
    lengths = [start + count for start, count in zip(step.starts, step.counts, strict=True)]
    assert inputs.context_lens.tolist() == lengths + [1] * padding
    assert inputs.cu_seqlens_q.tolist() == [0, *ends] + [ends[-1]] * padding
    sampled = [rows[row] for row in step.sample_rows]
    assert buffers.sample_at(len(sampled)).tolist() == [ends[row] - 1 for row in step.sample_rows]
    assert buffers.sample_slot(len(sampled)).tolist() == [request.row_slot for request in sampled]
    check_sampling(machine, sampled)


def blocked_of(request: Request) -> set[int]:
    if request.num_generated >= request.params.min_tokens:
        return set()
    return set(request.params.stop_token_ids) | (set() if request.params.ignore_eos else set(EOS))


def variant_of(requests: list[Request]) -> Sampling:
    drawn = [request.params for request in requests if request.params.temperature > 0]
    if any(params.top_k > 0 or params.top_p < 1 for params in drawn):
        return Sampling.FILTERED
    return Sampling.DRAWN if drawn or any(map(blocked_of, requests)) else Sampling.GREEDY


def check_sampling(machine: Machine, requests: list[Request]) -> None:
    inputs, rows = machine.buffers.sampling_inputs(machine.sizes.max_num_seqs), len(requests)
    assert machine.packed.sampling is variant_of(requests)
    padding = machine.sizes.max_num_seqs - rows

    def matches(column: Tensor, values: list[float], pad: float) -> bool:
        if machine.packed.sampling is Sampling.GREEDY:  # nothing is read
            return True
        return torch.equal(column, torch.tensor(values + [pad] * padding, dtype=column.dtype))

    params = [request.params for request in requests]
    assert matches(inputs.temperature, [p.temperature for p in params], 0)
    assert matches(inputs.top_k, [p.top_k or NO_TOP_K for p in params], NO_TOP_K)
    assert matches(inputs.top_p, [p.top_p for p in params], 1)
    assert matches(inputs.min_p, [p.min_p for p in params], 0)
    assert matches(inputs.seed, [(r.seed + (1 << 63)) % (1 << 64) - (1 << 63) for r in requests], 0)
    assert matches(inputs.position, [request.num_generated for request in requests], 0)
    if machine.packed.sampling is not Sampling.GREEDY:
        for row, request in enumerate(requests):
            assert set(inputs.blocked_ids[row][inputs.blocked[row] < 0].tolist()) == blocked_of(request)
        assert inputs.blocked[rows:].eq(0).all()


def check_common(machine: Machine, step: Step) -> None:
    """The block table, and how much of it the step reads."""
    buffers, sizes = machine.buffers, machine.sizes
    for request in step.requests:
        blocks = request.block_ids
        want = blocks + [0] * (sizes.table_width - len(blocks))
        assert buffers.state.block_table[request.row_slot].tolist() == want
    assert buffers.state.block_table[buffers.spare_slot].eq(0).all()
    longest = max(start + count for start, count in zip(step.starts, step.counts, strict=True))
    needed = max(2, -(-longest // sizes.block_size))
    assert machine.packed.width == (sizes.table_width if sizes.fixed_width else needed)


# Random lives.


def random_params(draw: random.Random) -> dict[str, object]:
    max_tokens = draw.randint(1, 20)
    kind = draw.choice(["greedy", "greedy", "drawn", "filtered", "filtered"])
    params: dict[str, object] = {"max_tokens": max_tokens, "temperature": 0.0}
    if kind != "greedy":
        params |= {"temperature": draw.choice([0.5, 1.0, 1.7]), "min_p": draw.choice([0.0, 0.05])}
    if kind == "filtered":
        params |= {"top_k": draw.choice([0, 1, 40]), "top_p": draw.choice([0.3, 0.95])}
    if draw.random() < 0.3:
        params |= {"min_tokens": draw.randint(0, max_tokens), "ignore_eos": draw.random() < 0.3}
        params |= {"stop_token_ids": draw.sample(range(12), draw.randint(0, 4))}
    return params


def live(machine: Machine, draw: random.Random, operations: int) -> dict[str, int]:
    """Random submissions, steps, failed steps, aborts and preemptions; how often each came about."""
    counts = dict.fromkeys(["decode", "mixed", "dropped", "reused", "one token", "null"], 0)
    requests: list[Request] = []
    slots: set[int] = set()
    for _ in range(operations):
        scheduler, choice = machine.scheduler, draw.random()
        if choice < 0.15 and scheduler.num_waiting < 4:
            prompt = [draw.randrange(50) for _ in range(draw.choice([1, 1, 2, 3, 6, 7, 15]))]
            requests.append(machine.add(prompt, seed=draw.randrange(1 << 64), **random_params(draw)))
        elif choice < 0.18 and scheduler.running:
            scheduler.finish(draw.choice(scheduler.running), "abort")
        elif choice < 0.22 and scheduler.num_running > 1:
            scheduler._preempt_last()
        elif scheduler.has_work:
            if draw.random() < 0.06:
                machine.drop()
                counts["dropped"] += 1
                continue
            step = machine.scheduler.next_step()  # the same again when it is packed
            assert step is not None
            tokens = [draw.choice([-1, *range(50)]) for _ in step.sample_rows]
            step = machine.run(tokens)
            counts["decode" if step.is_decode else "mixed"] += 1
            counts["one token"] += not step.is_decode and step.num_tokens == 1
            counts["reused"] += any(r.row_slot in slots for r in step.requests if r.status is RequestStatus.RUNNING)
            counts["null"] += any(r.block_ids[:1] == [0] for r in step.requests)
            slots |= {request.row_slot for request in step.requests}
        machine.scheduler.check()
    return counts


SHAPES = {
    "narrow": Sizes(),
    "as on a GPU": Sizes(fixed_width=True, separate=True),
    "one row": Sizes(max_num_seqs=1, budget=1, block_size=4, separate=True),
    "one token a block": Sizes(max_num_seqs=3, budget=5, block_size=1, num_blocks=45),
    "few blocks": Sizes(max_num_seqs=6, budget=9, block_size=2, num_blocks=21, separate=True),
    "window": Sizes(num_blocks=12, window=5),
    "window as on a GPU": Sizes(budget=7, block_size=2, num_blocks=16, window=6, fixed_width=True, separate=True),
    "many rows": Sizes(max_num_seqs=12, budget=64, block_size=5, num_blocks=80, fixed_width=True),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_field_of_every_step_equals_the_oracle(shape: str, seed: int) -> None:
    machine = Machine(SHAPES[shape])
    counts = live(machine, random.Random(seed), 400)
    assert counts["decode"] > 20
    assert counts["mixed"] > 20
    assert counts["dropped"] > 3
    assert counts["reused"] > 20
    assert machine.scheduler.num_preemptions > 0 or shape == "one row"
    assert counts["one token"] > 0 or shape != "one row"
    assert counts["null"] > 100 or SHAPES[shape].window is None


# Single cases, each a claim of its own.


def test_a_slot_that_changes_hands_shows_nothing_of_its_former_owner() -> None:
    machine = Machine(Sizes(separate=True))
    first = machine.add(list(range(20)), max_tokens=5)
    for _ in range(3):
        machine.run()
    slot, blocks = first.row_slot, first.block_ids
    machine.scheduler.finish(first, "abort")
    second = machine.add([1, 2])
    machine.run()
    assert second.row_slot == slot
    assert len(second.block_ids) < len(blocks)
    assert machine.buffers.state.block_table[slot].count_nonzero() == len(second.block_ids)


def test_of_a_table_only_the_cells_that_changed_are_written() -> None:
    machine = Machine(Sizes(window=4, separate=True))  # 3 tokens a block
    request = machine.add([1, 2, 3, 4, 5], max_tokens=9)
    machine.run()
    cells, written = machine.buffers.state.block_table[request.row_slot], list[dict[int, int]]()
    for _ in range(5):
        cells[:] = GARBAGE
        step = machine.scheduler.next_step()
        assert step is not None
        packed = machine.buffers.pack(step)
        bring_over(machine.buffers, packed)
        assert len(packed.copies) == 1
        written.append({cell: int(block_id) for cell, block_id in enumerate(cells) if block_id != GARBAGE})
        machine.scheduler.commit(step, [7])
    assert written == [{}, {0: 0, 2: 3}, {}, {}, {1: 0, 3: 4}]  # at positions 5, 6, 7, 8, 9


def test_a_preempted_request_starts_over_from_its_own_tokens() -> None:
    machine = Machine(Sizes())
    machine.add([1, 2, 3], max_tokens=9)
    second = machine.add([4, 5, 6], max_tokens=9)
    for _ in range(3):
        machine.run([7, 8])
    machine.scheduler._preempt_last()
    machine.run()  # readmitted in the same step: all six tokens again, from the host
    assert machine.scheduler.num_preemptions == 1
    assert second.num_computed_tokens == 6


def test_after_a_dropped_step_the_tokens_come_from_the_host() -> None:
    machine = Machine(Sizes(separate=True))
    request = machine.add([1, 2, 3], max_tokens=9)
    machine.run([42])
    machine.drop()
    assert machine.buffers.state.last_token[request.row_slot] == GARBAGE
    machine.pack()
    assert machine.buffers.row_inputs(1).token_ids.tolist() == [42]


def test_a_decode_row_that_runs_beside_a_prompt_is_fed_from_the_device() -> None:
    machine = Machine(Sizes())
    first = machine.add([1, 2, 3], max_tokens=9)
    machine.run([42])
    machine.add([4, 5, 6], max_tokens=9)
    machine.pack()
    assert machine.buffers.token_inputs(4).token_slot.tolist() == [first.row_slot, -1, -1, -1]


def test_min_tokens_holds_stop_ids_back_until_it_is_reached() -> None:
    machine = Machine(Sizes())
    machine.add([1], max_tokens=9, min_tokens=2, temperature=0, stop_token_ids=[3])
    blocked: list[set[int]] = []
    variants: list[Sampling] = []
    for _ in range(4):
        machine.run([1])
        inputs = machine.buffers.sampling_inputs(1)
        blocked.append(set(inputs.blocked_ids[0][inputs.blocked[0] < 0].tolist()))
        variants.append(machine.packed.sampling)
    assert blocked[:2] == [{3, *EOS}] * 2
    assert variants == [Sampling.DRAWN, Sampling.DRAWN, Sampling.GREEDY, Sampling.GREEDY]


def test_blocking_ends_for_one_row_while_another_still_blocks() -> None:
    machine = Machine(Sizes())
    for least in (1, 3):
        machine.add([1], max_tokens=9, min_tokens=least, ignore_eos=True, stop_token_ids=[least])
    seen = []
    for _ in range(4):
        machine.run([4, 4])
        inputs = machine.buffers.sampling_inputs(2)
        seen.append([inputs.blocked_ids[row][inputs.blocked[row] < 0].tolist() for row in range(2)])
    assert seen == [[[1], [3]], [[], [3]], [[], [3]], [[], []]]


def test_as_many_stop_ids_as_there_is_room_for_are_held_back() -> None:
    machine = Machine(Sizes())
    request = machine.add([1], min_tokens=1)
    request.eos_token_ids = frozenset(range(100, 100 + MAX_BLOCKED_IDS))
    step = machine.scheduler.next_step()
    assert step is not None
    bring_over(machine.buffers, machine.buffers.pack(step))
    inputs = machine.buffers.sampling_inputs(1)
    assert set(inputs.blocked_ids[0].tolist()) == request.eos_token_ids
    assert inputs.blocked.eq(-torch.inf).all(-1).tolist() == [True]


@pytest.mark.parametrize(
    ("params", "variant"),
    [
        ({"temperature": 0}, Sampling.GREEDY),
        ({"temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.5}, Sampling.GREEDY),
        ({"temperature": 0, "min_tokens": 2}, Sampling.DRAWN),
        ({"temperature": 0, "min_tokens": 2, "ignore_eos": True}, Sampling.GREEDY),
        ({"temperature": 1}, Sampling.DRAWN),
        ({"temperature": 1, "min_p": 0.1}, Sampling.DRAWN),
        ({"temperature": 1, "top_k": 5}, Sampling.FILTERED),
        ({"temperature": 1, "top_p": 0.9}, Sampling.FILTERED),
    ],
    ids=str,
)
def test_a_step_does_no_more_sampling_work_than_its_rows_ask_for(params: dict[str, object], variant: Sampling) -> None:
    machine = Machine(Sizes())
    machine.add([1], temperature=0)
    machine.add([1], **params)
    machine.pack()
    assert machine.packed.sampling is variant


def test_the_addresses_that_graphs_hold_never_change() -> None:
    machine = Machine(Sizes(separate=True))

    def addresses() -> list[int]:
        return [tensor.data_ptr() for tensor in machine.buffers.named_tensors().values()]

    before = addresses()
    live(machine, random.Random(1), 60)
    assert addresses() == before


def test_a_new_engine_holds_nothing_but_padding() -> None:
    """Warm-up and capture run on it, before any step is packed."""
    buffers = make_buffers(Sizes(max_num_seqs=3, fixed_width=True, separate=True))
    rows, sampling = buffers.row_inputs(3), buffers.sampling_inputs(3)
    assert rows.row_slot.tolist() == [3, 3, 3]
    assert rows.context_lens.tolist() == [1, 1, 1]
    assert [column.count_nonzero() for column in (rows.positions, rows.slot_mapping, sampling.temperature)] == [0, 0, 0]
    assert sampling.top_k.tolist() == [NO_TOP_K] * 3
    assert sampling.top_p.tolist() == [1, 1, 1]
    assert not any(tensor.count_nonzero() for tensor in (buffers.state.last_token, buffers.state.block_table))


def test_fields_of_an_arena_lie_apart_and_aligned() -> None:
    """An odd number of 4-byte entries does not shift what follows to an address that 8-byte entries may not have."""
    fields = {"a": ((3,), "int32"), "b": ((2,), "int64"), "c": ((1,), "float32"), "d": ((2, 2), "int64")}
    arena = Arena(fields, DeferredStream())
    for number, (name, host) in enumerate(arena.host[1].items()):
        host[:] = number + 1
        assert host.ctypes.data % 8 == 0
        assert arena.device[name].shape == host.shape
    ((to, source),) = arena.copies(1)
    to.copy_(source)
    for number, name in enumerate(arena.device):
        assert arena.device[name].eq(number + 1).all()
