"""The static tensors that a step reads and writes, by name; what fills them is the engine's affair."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from torch import Tensor


class Sampling(Enum):
    """How much sampling work a step does; each is a graph of its own."""

    GREEDY = "greedy"  # argmax only
    DRAWN = "drawn"  # temperature, min-p, blocked tokens
    FILTERED = "filtered"  # and the threshold search of top-k and top-p


class RowInputs(NamedTuple):
    """Static inputs of a decode step, one entry per row (views of the first ``rows`` of the engine's buffers)."""

    token_ids: Tensor
    """``[rows] int64``: the token computed; -1: the one that ``last_token`` holds for the row's slot."""
    row_slot: Tensor
    """``[rows] int64``: where in ``last_token`` and ``block_table`` the row lives; padding uses the spare slot."""
    positions: Tensor
    """``[rows] int64``: position of the token computed."""
    slot_mapping: Tensor
    """``[rows] int64``: where its key and value go."""
    context_lens: Tensor
    """``[rows] int32``: positions + 1."""
    table_at: Tensor | None = None
    """``[n] int64``: cells of the flattened block table to be written first; None where the host writes the table."""
    table_value: Tensor | None = None
    """``[n] int32``: what they become; padding writes 0 into the spare row."""


class TokenInputs(NamedTuple):
    """Inputs of a mixed step: one entry per token, and per row up to ``max_num_seqs``."""

    token_ids: Tensor
    """``[tokens] int64``; read where ``token_slot`` is negative."""
    token_slot: Tensor
    """``[tokens] int64``: the slot whose ``last_token`` is the token, or -1."""
    positions: Tensor
    """``[tokens] int64``."""
    slot_mapping: Tensor
    """``[tokens] int64``."""
    row_slot: Tensor
    """``[max_num_seqs] int64``."""
    context_lens: Tensor
    """``[max_num_seqs] int32``."""
    cu_seqlens_q: Tensor
    """``[max_num_seqs + 1] int32``."""
    host: Tensor | None = None
    """``[3] int64`` on the CPU: see ``AttentionMetadata.host``."""


@dataclass(frozen=True)
class StepState:
    """What outlives a step on the device."""

    last_token: Tensor
    """``[max_num_seqs + 1] int64``: the token each slot's request generated last; the last entry is the spare."""
    block_table: Tensor
    """``[max_num_seqs + 1, width] int32``: each slot's blocks; the spare row is all null block."""
    out: Tensor
    """``[max_num_seqs] int64``: the tokens of this step, by row."""
