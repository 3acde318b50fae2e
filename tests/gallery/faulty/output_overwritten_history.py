"""The logits of each step are kept in a list: under replay all entries are the same memory, with the last values."""

import torch
from torch import Tensor

HISTORY: list[Tensor] = []


def step(hidden: Tensor, head: Tensor) -> Tensor:
    logits = hidden @ head
    HISTORY.append(logits)  # FAULT: output-overwritten
    return logits.argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 32)
