"""transformers#45323: graphs were kept by padded sizes; the longest key was a Python int in the attention call.

Seen: GSM8K fell from about 0.45 to 0.23 when a graph was replayed for a batch with a longer row.
"""

import torch
from torch import Tensor


def varlen_attention(query: Tensor, keys: Tensor, cu_seqlens_k: Tensor, max_seqlen_k: int) -> Tensor:
    """Attends over packed keys as flash_attn_varlen_func does: at most ``max_seqlen_k`` of each row."""
    offsets = torch.arange(max_seqlen_k, device=keys.device)  # FAULT: frozen-value
    where = (cu_seqlens_k[:-1, None] + offsets).clamp(max=keys.shape[0] - 1)
    inside = offsets < cu_seqlens_k.diff()[:, None]
    scores = torch.einsum("bh,bth->bt", query, keys[where]).masked_fill(~inside, float("-inf"))
    return torch.einsum("bt,bth->bh", scores.softmax(-1), keys[where])


def step(query: Tensor, keys: Tensor, cu_seqlens_k: Tensor, max_seqlen_k: int) -> Tensor:
    return varlen_attention(query, keys, cu_seqlens_k, max_seqlen_k)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    torch.manual_seed(variant)
    lens = torch.tensor([3 + row % 3 + 4 * variant for row in range(batch_size)])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lens.cumsum(0)])
    return torch.randn(batch_size, 8), torch.randn(32 * batch_size, 8), cu_seqlens, int(lens.max())
