"""The caller gets a view of the static output buffer: what it holds changes with the next step."""

import torch
from torch import Tensor

OUT = torch.zeros(8, 32)


def step(hidden: Tensor, head: Tensor) -> Tensor:
    OUT[: hidden.shape[0]].copy_(hidden @ head)
    return OUT[: hidden.shape[0]]  # FAULT: output-overwritten


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 32)
