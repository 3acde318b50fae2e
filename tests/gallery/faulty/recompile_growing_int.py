"""A length that grows with each token is compiled as a constant first, then again (pytorch#132849)."""

import torch
from torch import Tensor


def step(query: Tensor, keys: Tensor, max_len: int) -> Tensor:  # FAULT: recompile (either)
    keys = keys[:, :max_len]  # FAULT: recompile (either)
    return torch.einsum("bh,bth->bt", query, keys).logsumexp(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), 5 + variant
