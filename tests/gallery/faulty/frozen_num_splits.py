"""The number of parts a long row is split into is a launch parameter: replay keeps that of the capture (vllm#51119)."""

import torch
from torch import Tensor

SPLIT = 4


def step(query: Tensor, keys: Tensor, context_lens: Tensor, max_len: int) -> Tensor:
    splits = -(-max_len // SPLIT)
    chunks = keys.narrow(1, 0, splits * SPLIT)  # FAULT: frozen-value
    past = torch.arange(chunks.shape[1], device=keys.device) >= context_lens[:, None]
    scores = torch.einsum("bh,bth->bt", query, chunks).masked_fill(past, -1e9)
    return scores.unflatten(1, (splits, SPLIT)).amax(-1).logsumexp(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    torch.manual_seed(variant)
    lens = [3 + 4 * variant] * batch_size
    return torch.randn(batch_size, 8), torch.randn(batch_size, 32, 8), torch.tensor(lens), max(lens)
