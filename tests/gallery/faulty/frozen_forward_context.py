"""The metadata travels in a module-level context as in nano-vllm: not an argument, and frozen all the same."""

from types import SimpleNamespace

import torch
from torch import Tensor

CONTEXT = SimpleNamespace(max_len=0)


def step(query: Tensor, keys: Tensor) -> Tensor:
    keys = keys[:, : CONTEXT.max_len]  # FAULT: frozen-value
    return torch.einsum("bh,bth->bt", query, keys).logsumexp(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    CONTEXT.max_len = 6 + 2 * variant
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8)
