"""A checkpoint's greedy decode step as a plain function with a maker of inputs: something to look into.

The same ``StepModel`` that the engine captures, over a small KV cache and a block table of its own. The function's
arguments are the static inputs of ``RowInputs``; caches, table and outputs are state that it keeps. Variants have other
tokens, lengths and so other slots. Knows no engine, and nothing of whoever looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ostinato.layers.sampler import SamplingInputs
from ostinato.models.decode_step import StepModel, eager_pieces
from ostinato.models.decoder import Decoder
from ostinato.models.kv_cache import allocate_kv_cache
from ostinato.models.rope_tables import rope_of
from ostinato.models.spec import ModelSpec
from ostinato.models.standalone import load
from ostinato.models.step_inputs import RowInputs, Sampling, StepState

BLOCK_SIZE = 16
BLOCKS_PER_ROW = 4
MAX_ROWS = 32


class StepTarget(NamedTuple):
    """A step and what makes its inputs."""

    function: DecodeStep
    make_inputs: MakeInputs


class DecodeStep(nn.Module):
    """``step(token_ids, row_slot, positions, slot_mapping, context_lens) -> [rows] int64``, the sampled tokens.

    A module, so that its parameters are known by their paths in the checkpoint's decoder.
    """

    def __init__(self, decoder: Decoder, spec: ModelSpec) -> None:
        super().__init__()
        self.decoder = decoder
        weight = next(decoder.parameters())
        num_blocks = 1 + MAX_ROWS * BLOCKS_PER_ROW
        self.kv_cache = allocate_kv_cache(spec, num_blocks, BLOCK_SIZE, weight.dtype, weight.device)
        table = torch.zeros(MAX_ROWS + 1, BLOCKS_PER_ROW, dtype=torch.int32)
        table[:MAX_ROWS] = 1 + torch.arange(MAX_ROWS * BLOCKS_PER_ROW, dtype=torch.int32).view(MAX_ROWS, -1)
        self.state = StepState(
            last_token=torch.zeros(MAX_ROWS + 1, dtype=torch.int64, device=weight.device),
            block_table=table.to(weight.device),
            out=torch.zeros(MAX_ROWS, dtype=torch.int64, device=weight.device),
        )
        rope = rope_of(decoder, BLOCK_SIZE * BLOCKS_PER_ROW, weight.device)
        self.model = StepModel(decoder, rope, self.kv_cache, self.state)
        self.pieces = eager_pieces(decoder)

    def forward(
        self, token_ids: Tensor, row_slot: Tensor, positions: Tensor, slot_mapping: Tensor, context_lens: Tensor
    ) -> Tensor:
        """One token for each row."""
        rows = RowInputs(token_ids, row_slot, positions, slot_mapping, context_lens)
        self.model.decode(self.pieces, rows, BLOCKS_PER_ROW, Sampling.GREEDY, _NO_SAMPLING)
        return self.state.out[: len(row_slot)]


class MakeInputs:
    """Static inputs of a decode step for ``batch_size`` rows."""

    def __init__(self, spec: ModelSpec, table: Tensor) -> None:
        self._vocab_size = spec.vocab_size
        self._table = table

    def __call__(self, batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
        """``(token_ids, row_slot, positions, slot_mapping, context_lens)``, each ``[batch_size]``."""
        if not 1 <= batch_size <= MAX_ROWS:
            raise ValueError(f"batch_size: expected 1 to {MAX_ROWS}, got {batch_size}")
        device = self._table.device
        generator = torch.Generator().manual_seed(variant)
        token_ids = torch.randint(self._vocab_size, (batch_size,), generator=generator)
        row_slot = torch.arange(batch_size)
        positions = (20 + 7 * row_slot + 13 * variant) % (BLOCK_SIZE * BLOCKS_PER_ROW - 1)
        blocks = self._table.cpu()[row_slot, positions // BLOCK_SIZE].long()
        slots = blocks * BLOCK_SIZE + positions % BLOCK_SIZE
        inputs = token_ids, row_slot, positions, slots, (positions + 1).int()
        return tuple(each.to(device) for each in inputs)


def step_target(model: str | Path | Mapping[str, object], device: str = "cpu") -> StepTarget:
    """The decode step of a checkpoint folder, or of a config.json (then with random weights).

    ``ModelLoadError`` where it cannot be read.
    """
    loaded = load(model, device=device)
    step = DecodeStep(loaded.decoder, loaded.spec)
    return StepTarget(step, MakeInputs(loaded.spec, step.state.block_table))


_NOTHING = torch.empty(0)
_NO_SAMPLING = SamplingInputs(*[_NOTHING] * len(SamplingInputs._fields))
"""What a greedy step does not read."""
