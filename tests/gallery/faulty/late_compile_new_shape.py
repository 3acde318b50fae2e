"""A function compiled for fixed shapes meets a new one after the warm-up: it is compiled while a request waits."""

import torch
from torch import Tensor


@torch.compile(dynamic=False, backend="eager")
def attend(query: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum("bh,bth->bt", query, keys).softmax(-1)


def step(query: Tensor, keys: Tensor, max_len: int) -> Tensor:
    keys = keys[:, : -(-max_len // 4) * 4]
    return attend(query, keys).amax(-1)  # FAULT: late-compile


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 32, 8), 3 + 4 * variant
