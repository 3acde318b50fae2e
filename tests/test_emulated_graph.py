"""Emulated graphs: replay does what the step does on fresh inputs, and freezes what a CUDA graph would freeze."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ostinato.graphs.ambient import neutral_state
from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.layers.attention.varlen import varlen_attention
from ostinato.layers.errors import CaptureError
from ostinato.layers.logit_edits import EditInputs
from ostinato.layers.sampler import SamplingInputs
from ostinato.models.decode_step import StepModel, eager_pieces
from ostinato.models.decoder import Decoder
from ostinato.models.kv_cache import allocate_kv_cache
from ostinato.models.rope_tables import rope_of
from ostinato.models.spec import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec
from ostinato.models.step_inputs import RowInputs, Sampling, StepState

# A paged decode step.

ATTENTION = AttentionSpec(4, 2, 8, 8**-0.5, RopeSpec(1e4, 8), qk_norm="head")
SPEC = ModelSpec("Tiny", 40, 16, (LayerSpec(ATTENTION, FfnSpec(24, "silu")),) * 2, NormSpec(1e-5), False, 64, "float32")
WIDTH, BLOCK_SIZE = 4, 4
CPU = torch.device("cpu")


@dataclass
class Tiny:
    """A small model with static inputs for ``rows`` rows; two made alike hold equal values."""

    model: StepModel
    rows: RowInputs
    sampling: SamplingInputs
    edits: EditInputs

    def __init__(self, decoder: Decoder, rows: int) -> None:
        generator = torch.Generator().manual_seed(1)
        blocks = rows * WIDTH + 1
        table = torch.zeros(rows + 1, WIDTH, dtype=torch.int32)
        table[:rows] = 1 + torch.randperm(rows * WIDTH, generator=generator).view(rows, WIDTH)
        state = StepState(torch.zeros(rows + 1, dtype=torch.int64), table, torch.zeros(rows, dtype=torch.int64))
        cache = allocate_kv_cache(SPEC, blocks, BLOCK_SIZE, torch.float32, CPU)
        for pages in cache:
            for tensor in pages:
                tensor.normal_(generator=generator)
        self.model = StepModel(decoder, rope_of(decoder, 64, CPU), cache, state)
        zeros = (torch.zeros(rows, dtype=torch.int64) for _ in range(3))
        self.rows = RowInputs(torch.full((rows,), -1), *zeros, torch.ones(rows, dtype=torch.int32))
        floats, integers = (lambda: torch.zeros(rows)), (lambda: torch.zeros(rows, dtype=torch.int64))
        blocked = torch.zeros(rows, 2, dtype=torch.int64), torch.zeros(rows, 2)
        self.sampling = SamplingInputs(floats(), floats(), floats(), floats(), integers(), integers(), *blocked)
        counts = torch.zeros(rows + 1, SPEC.vocab_size, dtype=torch.int32)
        biases = torch.zeros(rows + 1, 2, dtype=torch.int64), torch.zeros(rows + 1, 2)
        mask = torch.zeros(rows + 1, -(-SPEC.vocab_size // 32), dtype=torch.int32)
        penalties = torch.ones(rows), floats(), floats(), torch.ones(rows), floats()
        self.edits = EditInputs(*penalties, self.rows.row_slot, counts, *biases, mask)

    def step(self, variant: Sampling) -> Callable[[], None]:
        pieces = eager_pieces(self.model.decoder)
        return lambda: self.model.decode(pieces, self.rows, WIDTH, variant, self.sampling, self.edits)

    def set_inputs(self, seed: int) -> None:
        """New lengths, slots, tokens and sampling parameters, written into the static tensors."""
        generator = torch.Generator().manual_seed(seed)
        count = len(self.rows.positions)
        state, rows, sampling = self.model.state, self.rows, self.sampling
        rows.row_slot.copy_(torch.randperm(count, generator=generator))
        rows.positions.copy_(torch.randint(WIDTH * BLOCK_SIZE, (count,), generator=generator))
        rows.context_lens.copy_(rows.positions + 1)
        cells = state.block_table[rows.row_slot, rows.positions // BLOCK_SIZE]
        rows.slot_mapping.copy_(cells * BLOCK_SIZE + rows.positions % BLOCK_SIZE)
        state.last_token.copy_(torch.randint(SPEC.vocab_size, (count + 1,), generator=generator))
        sampling.temperature.copy_(torch.rand(count, generator=generator) * 2)
        sampling.temperature[0] = 0
        sampling.top_k.copy_(torch.randint(1, 60, (count,), generator=generator))
        sampling.top_p.copy_(0.3 + 0.7 * torch.rand(count, generator=generator))
        sampling.seed.copy_(torch.randint(-(2**60), 2**60, (count,), generator=generator))
        sampling.position.copy_(torch.randint(100, (count,), generator=generator))
        self.edits.repetition.copy_(0.5 + torch.rand(count, generator=generator))
        self.edits.frequency.copy_(torch.rand(count, generator=generator))
        self.edits.masked.copy_(torch.randint(2, (count,), generator=generator))
        self.edits.bias_ids.copy_(torch.tensor([0, SPEC.vocab_size - 1]))
        self.edits.bias.copy_(torch.randn(count + 1, 2, generator=generator))
        self.edits.mask.copy_(torch.randint(-(2**31), 2**31, self.edits.mask.shape, generator=generator))

    def results(self) -> list[Tensor]:
        """All that a step writes."""
        pages = [tensor for pair in self.model.kv_cache for tensor in pair]
        return [self.model.state.last_token, self.model.state.out, self.edits.counts, *pages]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    with torch.device("meta"):
        made = Decoder(SPEC)
    made = made.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return made


@pytest.mark.parametrize("variant", Sampling)
@pytest.mark.parametrize("rows", [1, 3])
def test_replay_of_a_decode_step_equals_eager_on_fresh_inputs(decoder: Decoder, rows: int, variant: Sampling) -> None:
    replayed, eager = Tiny(decoder, rows), Tiny(decoder, rows)
    graph = EmulatedGraph()
    with neutral_state("cpu"):
        for tiny in (replayed, eager):
            tiny.set_inputs(0)
        graph.capture(replayed.step(variant))
        eager.step(variant)()
        for seed in range(1, 6):
            replayed.set_inputs(seed)
            eager.set_inputs(seed)
            graph.replay()
            eager.step(variant)()
            assert all(map(torch.equal, replayed.results(), eager.results()))
    assert graph.opaque == ()


def test_replays_feed_the_token_back_by_themselves(decoder: Decoder) -> None:
    """Between two replays the host writes positions and slots, never tokens."""
    replayed, eager = Tiny(decoder, 2), Tiny(decoder, 2)
    graph = EmulatedGraph()
    tokens: list[list[int]] = []
    with neutral_state("cpu"):
        graph.capture(replayed.step(Sampling.GREEDY))
        for tiny, run in ((replayed, graph.replay), (eager, eager.step(Sampling.GREEDY))):
            tiny.set_inputs(3)
            for position in range(8):
                tiny.rows.positions.fill_(position)
                tiny.rows.context_lens.fill_(position + 1)
                cells = tiny.model.state.block_table[tiny.rows.row_slot, position // BLOCK_SIZE]
                tiny.rows.slot_mapping.copy_(cells * BLOCK_SIZE + position % BLOCK_SIZE)
                run()
                tokens.append(tiny.model.state.out.tolist())
    assert tokens[:8] == tokens[8:]
    assert len(set(map(tuple, tokens))) > 2


# Single operations. Each step reads ``x`` and writes ``out``, both static.

Step = Callable[[Tensor, Tensor], object]


def in_place_on_an_intermediate(x: Tensor, out: Tensor) -> None:
    y = x + 1
    y.mul_(3).clamp_(max=20)
    out.copy_(y)


def write_through_views(x: Tensor, out: Tensor) -> None:
    out.zero_()
    out[1:3].view(-1)[::2] = x[0]
    out.t()[3].add_(x.sum(1))


def views_of_an_intermediate(x: Tensor, out: Tensor) -> None:
    y = x * 2
    first, second = y.t().chunk(2)
    y.sub_(1)  # seen through both views
    out.copy_(torch.cat([second, first]).t())


def reshape_that_copies(x: Tensor, out: Tensor) -> None:
    out.copy_(x.t().reshape(-1).view(4, 4))


def several_outputs(x: Tensor, out: Tensor) -> None:
    values, indices = x.max(-1)
    spread, mean = torch.var_mean(x)
    out.copy_(torch.stack([values, indices.float(), spread.expand(4), mean.expand(4)]))


def out_variants(x: Tensor, out: Tensor) -> None:
    torch.add(x, x, out=out)
    torch.mul(out, x, out=out)


def gathers_and_scatters(x: Tensor, out: Tensor) -> None:
    order = x[0].argsort()
    out.zero_().index_copy_(0, order, x)
    out[order[:2], order[2:]] += x[1, 1]


def expands_and_casts(x: Tensor, out: Tensor) -> None:
    out.copy_((x[:1].expand(4, 4).half() + x.half()).float().contiguous())


STEPS: list[Step] = [
    in_place_on_an_intermediate,
    write_through_views,
    views_of_an_intermediate,
    reshape_that_copies,
    several_outputs,
    out_variants,
    gathers_and_scatters,
    expands_and_casts,
]


def randn(seed: int) -> Tensor:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))


def captured(step: Step, x: Tensor, out: Tensor) -> EmulatedGraph:
    graph = EmulatedGraph()
    graph.capture(lambda: step(x, out))
    return graph


@pytest.mark.parametrize("step", STEPS)
def test_replay_equals_eager_for(step: Step) -> None:
    x, out = randn(0), torch.zeros(4, 4)
    graph = captured(step, x, out)
    for seed in (1, 2, 3):
        x.copy_(randn(seed))
        graph.replay()
        want = torch.zeros(4, 4)
        step(x, want)
        assert torch.equal(out, want)


# What is frozen.


def test_a_python_number_read_from_a_tensor_is_frozen() -> None:
    """The classic capture bug, seen without a GPU: the loop below runs as often as it did at capture."""

    def step(lens: Tensor, out: Tensor) -> None:
        longest = int(lens.max())
        out.copy_((torch.arange(8) < longest).float())

    lens, out = torch.tensor([2, 5]), torch.zeros(8)
    graph = captured(step, lens, out)
    assert out.sum() == 5
    lens.fill_(7)
    graph.replay()
    assert out.sum() == 5
    step(lens, out)
    assert out.sum() == 7


def test_a_branch_on_a_tensor_is_frozen() -> None:
    def step(x: Tensor, out: Tensor) -> None:
        out.copy_(x if x.sum() > 0 else -x)

    x, out = torch.ones(4), torch.zeros(4)
    graph = captured(step, x, out)
    x.fill_(-1)
    graph.replay()
    assert torch.equal(out, -torch.ones(4))


def test_a_python_variable_is_frozen() -> None:
    factor, x, out = [2.0], torch.ones(4), torch.zeros(4)
    graph = captured(lambda x, out: out.copy_(x * factor[0]), x, out)
    factor[0] = 9.0
    graph.replay()
    assert torch.equal(out, torch.full((4,), 2.0))


def test_addresses_are_frozen() -> None:
    """A tensor that replaces a captured one is not read."""
    inputs, out = {"x": torch.ones(4)}, torch.zeros(4)
    graph = EmulatedGraph()
    graph.capture(lambda: out.copy_(inputs["x"]))
    inputs["x"] = torch.full((4,), 5.0)
    graph.replay()
    assert torch.equal(out, torch.ones(4))


@pytest.mark.parametrize("positive", [0, 1, 4])
def test_a_shape_that_depends_on_the_data_is_an_error_on_replay(positive: int) -> None:
    x, out = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.zeros(4)
    graph = captured(lambda x, out: out.fill_(float(x[x > 0].shape[0])), x, out)
    x.fill_(-1)
    x[:positive] = 1
    with pytest.raises(CaptureError, match=rf"aten\..* gave \[2\] at capture, \[{positive}\]"):
        graph.replay()


# Its life.


def test_opaque_operators_are_listed_by_name() -> None:
    q, cache = torch.ones(2, 2, 4), torch.ones(2, 4, 1, 4)
    table, lens = torch.ones(1, 1, dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    ends, out = torch.tensor([0, 2], dtype=torch.int32), torch.zeros(2, 2, 4)
    graph = EmulatedGraph()
    graph.capture(lambda: out.copy_(varlen_attention(q, cache, cache, table, lens, ends, 1.0)))
    assert graph.opaque == ("ostinato.varlen_attention.default",)
    cache.fill_(3)
    graph.replay()
    assert torch.equal(out, torch.full((2, 2, 4), 3.0))


def test_replay_without_a_capture_raises() -> None:
    with pytest.raises(RuntimeError, match="never captured"):
        EmulatedGraph().replay()


def test_replay_after_reset_raises() -> None:
    x, out = torch.ones(4), torch.zeros(4)
    graph = captured(lambda x, out: out.copy_(x), x, out)
    graph.reset()
    with pytest.raises(RuntimeError, match="was reset"):
        graph.replay()


def test_reset_frees_the_recorded_tensors() -> None:
    graph = EmulatedGraph()
    held: list[weakref.ref[Tensor]] = []

    def step() -> None:
        made = torch.ones(4) * 2
        held.append(weakref.ref(made))

    graph.capture(step)
    assert held[0]() is not None
    graph.reset()
    gc.collect()
    assert held[0]() is None


def test_a_second_capture_replaces_the_first() -> None:
    x, out = torch.ones(4), torch.zeros(4)
    graph = captured(lambda x, out: out.copy_(x), x, out)
    graph.capture(lambda: out.copy_(2 * x))
    out.zero_()
    graph.replay()
    assert torch.equal(out, 2 * x)


def test_a_step_that_fails_at_capture_leaves_nothing_to_replay() -> None:
    graph = EmulatedGraph()
    with pytest.raises(ZeroDivisionError):
        graph.capture(lambda: print(torch.ones(1) + 1, 1 // 0))
    with pytest.raises(RuntimeError, match="never captured"):
        graph.replay()
