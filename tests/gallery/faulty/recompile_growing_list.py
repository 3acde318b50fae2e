"""One tensor per token in a list: its length is guarded, so each new length is a new compilation."""

import torch
from torch import Tensor


def step(query: Tensor, past: list[Tensor]) -> Tensor:  # FAULT: recompile (either)
    keys = torch.stack(past, 1)  # FAULT: recompile (either)
    return torch.einsum("bh,bth->bt", query, keys).softmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), [torch.randn(batch_size, 8) for _ in range(3 + variant)]
