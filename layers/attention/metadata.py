"""What a step tells every attention layer: where the new tokens go and what each row may see."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
