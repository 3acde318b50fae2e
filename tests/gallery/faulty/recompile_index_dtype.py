"""Slots are int64 on one path of the scheduler and int32 on the other: the dtype is guarded, so both are compiled."""

import torch
from torch import Tensor


def step(cache: Tensor, slot_mapping: Tensor) -> Tensor:  # FAULT: recompile (either)
    rows = cache.index_select(0, slot_mapping)  # FAULT: recompile (either)
    return rows.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    dtype = torch.int32 if variant % 2 else torch.int64
    return torch.arange(512.0).view(64, 8), torch.arange(batch_size, dtype=dtype)
