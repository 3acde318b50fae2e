"""A helper that is marked as not compilable: the graph ends before it and begins anew after it."""

import torch
from torch import Tensor


@torch.compiler.disable
def penalty(logits: Tensor) -> Tensor:
    return logits.clamp(max=4.0)


def step(hidden: Tensor, head: Tensor) -> Tensor:
    logits = hidden @ head
    logits = penalty(logits)  # FAULT: graph-break
    return logits.argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 32)
