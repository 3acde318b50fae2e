"""Tokens go to another thread through a queue: it reads them after the next replay has written over them."""

import queue

import torch
from torch import Tensor

TOKENS: queue.SimpleQueue[Tensor] = queue.SimpleQueue()


def step(hidden: Tensor, head: Tensor) -> Tensor:
    tokens = (hidden @ head).argmax(-1)  # FAULT: output-overwritten (either)
    TOKENS.put(tokens)  # FAULT: output-overwritten (either)
    return tokens + 0


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 32)
