"""vllm#38436: a padding row of length 0 has a softmax of nothing, NaN, and a shared scale hands it to all rows.

Seen: NaN in the logits of real requests, with NVFP4 weights and padded batches only.
"""

import torch
from torch import Tensor


def attend(query: Tensor, keys: Tensor, seq_lens: Tensor) -> Tensor:
    past = torch.arange(keys.shape[1], device=keys.device) >= seq_lens[:, None]
    scores = torch.einsum("bh,bth->bt", query, keys).masked_fill(past, float("-inf"))
    return torch.einsum("bt,bth->bh", scores.softmax(-1), keys)


def step(query: Tensor, keys: Tensor, seq_lens: Tensor, weight: Tensor) -> Tensor:
    hidden = attend(query, keys, seq_lens)
    block_scale = hidden.abs().amax() / 6.0  # FAULT: padding-leak
    return (hidden / block_scale).round().clamp(-6, 6) @ weight * block_scale


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    lens = torch.tensor([4 + (row + variant) % 8 for row in range(batch_size)])
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), lens, torch.randn(8, 8)
