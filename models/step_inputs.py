"""The static tensors that a step reads and writes, by name; what fills them is the engine's affair."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from torch import Tensor

from ostinato.layers.logprobs import Probes


class Sampling(Enum):
    """How much sampling work a step does, least first; each is a graph of its own."""

    GREEDY = "greedy"  # argmax only
    DRAWN = "drawn"  # temperature, min-p, blocked tokens
    FILTERED = "filtered"  # and the threshold search of top-k and top-p
    EDITED_GREEDY = "edited, greedy"  # biases, penalties and masks; then the argmax
    EDITED = "edited"  # or any draw
    PROBED_GREEDY = "with logprobs, greedy"  # the argmax, and what ``layers.logprobs`` says of it
    PROBED = "with logprobs"  # all of this

    @property
    def draws(self) -> bool:
        """Whether its rows may ask for more than the argmax."""
        return self not in (Sampling.GREEDY, Sampling.EDITED_GREEDY, Sampling.PROBED_GREEDY)

    @property
    def filters(self) -> bool:
        """Whether its rows may ask for top-k and top-p."""
        return self.draws and self is not Sampling.DRAWN

    @property
    def edits(self) -> bool:
        """Whether its rows may ask for ``layers.logit_edits``."""
        return self in (Sampling.EDITED_GREEDY, Sampling.EDITED, Sampling.PROBED)

    @property
    def probes(self) -> bool:
        """Whether its rows may ask for logprobs."""
        return self in (Sampling.PROBED_GREEDY, Sampling.PROBED)

    def covers(self, *, draws: bool, filters: bool, edits: bool, probes: bool) -> bool:
        """Whether it does at least this work."""
        does = self.draws, self.filters, self.edits, self.probes
        return all(work or not asked for work, asked in zip(does, (draws, filters, edits, probes), strict=True))


BY_PASSES = tuple(Sampling)
"""The amounts of work that are worth telling apart where sampling is passes of ATen operations,"""
CAPTURED = tuple(kind for kind in Sampling if kind not in (Sampling.EDITED_GREEDY, Sampling.PROBED_GREEDY))
"""and these where each takes a capture;"""
BY_KERNELS = (Sampling.GREEDY, Sampling.FILTERED, Sampling.EDITED, Sampling.PROBED)
"""for our kernels, which do no more for a row than it asks for."""


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
    probes: Probes | None = None
    """``[max_num_seqs, …]``: how likely they were, if a step is asked."""
