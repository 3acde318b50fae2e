"""vllm#51119: the split of a long row is chosen on the host from a length of 1 at capture: one split for ever.

Seen: 87 to 90 ms per token at a context of 100,000 tokens, far more than the kernel needs when it is split.
"""

import torch
from torch import Tensor


def choose_splits(min_kv_seq_len: int) -> int:
    return 1 if min_kv_seq_len < 8 else 4


def decode_attention(query: Tensor, keys: Tensor, splits: int) -> Tensor:
    scores = torch.einsum("bh,bth->bt", query, keys)
    parts = scores.unflatten(1, (splits, -1))  # FAULT: frozen-value
    return parts.logsumexp(-1).logsumexp(-1)


def step(query: Tensor, keys: Tensor, min_kv_seq_len: int) -> Tensor:
    return decode_attention(query, keys, choose_splits(min_kv_seq_len))


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), 1 + 20 * variant
