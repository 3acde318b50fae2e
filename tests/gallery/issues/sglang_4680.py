"""sglang#4680: the metadata of a decode graph asks the device for the longest row, in the step that is captured.

Seen: in the first FlashAttention 3 backend, a wait for the device while the metadata of decode graphs was made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Metadata:
    cache_seqlens: Tensor
    max_seq_len_k: int
    cu_seqlens_q: Tensor


def init_forward_metadata(seq_lens: Tensor) -> Metadata:
    return Metadata(
        cache_seqlens=seq_lens.to(torch.int32),
        max_seq_len_k=seq_lens.max().item(),  # FAULT: device-sync
        cu_seqlens_q=torch.arange(seq_lens.shape[0] + 1, dtype=torch.int32, device=seq_lens.device),
    )


def step(query: Tensor, keys: Tensor, seq_lens: Tensor) -> Tensor:
    metadata = init_forward_metadata(seq_lens)
    keys = keys[:, : metadata.max_seq_len_k]
    past = torch.arange(keys.shape[1], device=keys.device) >= metadata.cache_seqlens[:, None]
    return torch.einsum("bh,bth->bt", query, keys).masked_fill(past, -1e9).logsumexp(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    lens = torch.tensor([3 + row % 4 + 2 * variant for row in range(batch_size)])
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), lens
