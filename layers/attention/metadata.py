"""What a step tells every attention layer: where the new tokens go and what each row may see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ostinato.layers.attention.backend import AttentionBackend

MIN_CELLS = 3
"""Of any block table at least, narrowed or whole: two would equal the two rows that symbolic code is compiled with."""


class AttentionMetadata(NamedTuple):
    """Static tensors of one step; ``rows`` are requests, ``tokens`` their new tokens.

    On a decode step (``cu_seqlens_q is None``) every row has exactly one token. A table cell of 0 is the null block.
    """

    slot_mapping: Tensor
    """``[tokens] int64``: where each new token's key and value go, ``block_id * block_size + offset``."""
    block_table: Tensor
    """``[rows, width] int32``: the blocks of each row's context, in order."""
    context_lens: Tensor
    """``[rows] int32``: tokens each row may see, its new ones included; at least 1."""
    cos: Tensor | None
    """``[tokens, rotary_dim / 2] float32``: cosines of the new tokens' positions; None where nothing rotates."""
    sin: Tensor | None
    """``[tokens, rotary_dim / 2] float32``."""
    cu_seqlens_q: Tensor | None
    """``[rows + 1] int32``: row ``r`` owns tokens ``cu_seqlens_q[r] : cu_seqlens_q[r + 1]``; None on a decode step."""
    table_start: Tensor | None = None
    """``[rows] int64``: which of a row's blocks the first cell of ``block_table`` is; None: the first. Decode only."""
    backend: AttentionBackend = AttentionBackend.TORCH
    """Who attends."""
    host: Tensor | None = None
    """``[3] int64`` on the CPU, of a varlen step: most new tokens of a row, longest context, 1 if a row has cached
    tokens. Opaque operators read it without a sync. In a step that is captured these are bounds that hold for every
    replay; None where nobody needs them.
    """


def within_window(meta: AttentionMetadata, window: int, block_size: int) -> AttentionMetadata:
    """``meta`` of a decode step with only the cells that a window of that many tokens can reach, wherever it lies.

    The number of cells depends on the window and on the table's width, not on any length, so a graph of it replays.
    """
    width = meta.block_table.shape[1]
    cells = min(width, max(MIN_CELLS, (window - 2) // block_size + 2))
    start = (meta.context_lens.long() - window).clamp_min(0) // block_size
    index = start[:, None] + torch.arange(cells, device=start.device)
    return meta._replace(block_table=meta.block_table.gather(1, index.clamp_max(width - 1)), table_start=start)
