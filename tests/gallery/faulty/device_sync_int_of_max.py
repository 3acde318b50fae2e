"""``int(tensor)`` waits for the device: the capture is refused with error 900 (sglang#4680)."""

import torch
from torch import Tensor


def step(query: Tensor, keys: Tensor, context_lens: Tensor) -> Tensor:
    max_len = int(context_lens.max())  # FAULT: device-sync
    scores = torch.einsum("bh,bth->bt", query, keys[:, :max_len])
    past = torch.arange(max_len, device=query.device) >= context_lens[:, None]
    return scores.masked_fill(past, float("-inf")).softmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    lens = torch.tensor([3 + row % 4 + 2 * variant for row in range(batch_size)])
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), lens
