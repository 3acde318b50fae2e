"""Our model, step by step and without an engine: pages shuffled, whatever was not written NaN, rows padded.

The one place of the tests that knows how a step is put together (``models.decode_step``). Every call returns the logits
of all tokens it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ostinato.graphs.ambient import neutral_state
from ostinato.layers.sampler import SamplingInputs
from ostinato.models.checkpoint import read_config
from ostinato.models.decode_step import StepModel, eager_pieces, head
from ostinato.models.decoder import Decoder
from ostinato.models.kv_cache import allocate_kv_cache
from ostinato.models.registry import family_for
from ostinato.models.rope_tables import rope_of
from ostinato.models.spec import ModelSpec
from ostinato.models.step_inputs import RowInputs, Sampling, StepState, TokenInputs
from ostinato.models.weights.load import load_weights

CPU = torch.device("cpu")
BLOCK_SIZE = 4
MAX_POSITIONS = 128
MAX_ROWS = 3

Work = Sequence[tuple[int, Sequence[int]]]
"""Rows and their new tokens."""


def load(folder: Path) -> Decoder:
    """The model of a checkpoint folder, in fp32 on the CPU."""
    config = read_config(folder)
    family = family_for(config)
    spec = family.spec(config)
    with torch.device("meta"):
        decoder = Decoder(spec)
    load_weights(decoder, family, spec, folder, CPU, torch.float32)
    return decoder.eval()


def with_spec(decoder: Decoder, spec: ModelSpec) -> Decoder:
    """A model of another spec, with parameters of ``decoder``: it must have all that the spec asks for."""
    other = Decoder(spec)
    given = decoder.state_dict()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(given[name])
    for module in other.modules():
        if hasattr(module, "make_buffers"):
            module.make_buffers(CPU)
    return other.eval()


class StepDriver:
    """Up to ``MAX_ROWS`` sequences in a cache of their own. Row r of a step is the r-th entry of its work."""

    def __init__(self, decoder: Decoder, *, seed: int = 0) -> None:
        width = MAX_POSITIONS // BLOCK_SIZE
        num_blocks = 1 + MAX_ROWS * width
        cache = allocate_kv_cache(decoder.spec, num_blocks, BLOCK_SIZE, torch.float32, CPU)
        for pages in (tensor for pair in cache for tensor in pair):
            pages.fill_(float("nan"))
        shuffled = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(seed)) + 1
        self._free_blocks: list[int] = shuffled.tolist()
        self._lengths = [0] * MAX_ROWS
        self._state = StepState(
            last_token=torch.zeros(MAX_ROWS + 1, dtype=torch.int64),
            block_table=torch.zeros(MAX_ROWS + 1, width, dtype=torch.int32),
            out=torch.zeros(MAX_ROWS * MAX_POSITIONS, dtype=torch.int64),
        )
        self._model = StepModel(decoder, rope_of(decoder, MAX_POSITIONS, CPU), cache, self._state)
        self._pieces = replace(eager_pieces(decoder), head=self._head)
        self._logits: list[Tensor] = []

    def mixed(self, work: Work) -> list[Tensor]:
        """Any number of tokens for each row of ``work``; the remaining rows are padding."""
        token_ids = [token for _, tokens in work for token in tokens]
        places = [self._extend(row, len(tokens)) for row, tokens in work]
        ends = [sum(len(tokens) for _, tokens in work[: i + 1]) for i in range(len(work))]
        padding = MAX_ROWS - len(work)
        inputs = TokenInputs(
            token_ids=_longs(token_ids),
            token_slot=_longs([-1] * len(token_ids)),
            positions=_longs(position for positions, _ in places for position in positions),
            slot_mapping=_longs(slot for _, slots in places for slot in slots),
            row_slot=_longs([row for row, _ in work] + [MAX_ROWS] * padding),
            context_lens=_ints([self._lengths[row] for row, _ in work] + [1] * padding),
            cu_seqlens_q=_ints([0, *ends, *ends[-1:] * padding]),
        )
        everywhere = torch.arange(len(token_ids))
        spare = torch.full_like(everywhere, MAX_ROWS)
        sampling = Sampling.GREEDY, _no_sampling()
        with neutral_state("cpu"):
            width = self._width(row for row, _ in work)
            self._model.mixed(self._pieces, self._pieces, inputs, width, everywhere, spare, *sampling)
        return list(self._logits.pop().split([len(tokens) for _, tokens in work]))

    def decode(self, work: Work, *, padding: int = 1) -> list[Tensor]:
        """One token for each row of ``work``, in a batch that is ``padding`` rows larger."""
        rows = [row for row, _ in work]
        for row, (token,) in work:
            self._state.last_token[row] = token
        places = [self._extend(row, 1) for row in rows]
        inputs = RowInputs(
            token_ids=torch.full((len(rows) + padding,), -1),
            row_slot=_longs(rows + [MAX_ROWS] * padding),
            positions=_longs([positions[0] for positions, _ in places] + [0] * padding),
            slot_mapping=_longs([slots[0] for _, slots in places] + [0] * padding),
            context_lens=_ints([self._lengths[row] for row in rows] + [1] * padding),
        )
        with neutral_state("cpu"):
            self._model.decode(self._pieces, inputs, self._width(rows), Sampling.GREEDY, _no_sampling())
        return list(self._logits.pop()[: len(rows)].split(1))

    def _extend(self, row: int, count: int) -> tuple[range, list[int]]:
        """Positions and cache slots of the row's next ``count`` tokens; takes the blocks they need."""
        table = self._state.block_table[row]
        positions = range(self._lengths[row], self._lengths[row] + count)
        self._lengths[row] += count
        for cell in {position // BLOCK_SIZE for position in positions if position % BLOCK_SIZE == 0}:
            table[cell] = self._free_blocks.pop()
        return positions, [int(table[p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE for p in positions]

    def _width(self, rows: Iterable[int]) -> int:
        """Cells of the block table that the longest of ``rows`` needs, and one more: a null block to mask."""
        return min(-(-max(self._lengths[row] for row in rows) // BLOCK_SIZE) + 1, MAX_POSITIONS // BLOCK_SIZE)

    def _head(self, decoder: Decoder, x: Tensor) -> Tensor:
        self._logits.append(head(decoder, x))
        return self._logits[-1]


def _longs(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _ints(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def _no_sampling() -> SamplingInputs:
    return SamplingInputs(*(torch.zeros(0) for _ in SamplingInputs._fields))
