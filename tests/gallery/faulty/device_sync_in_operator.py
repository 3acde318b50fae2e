"""``value in tensor`` compares on the device and fetches the answer: error 900."""

import torch
from torch import Tensor

END = 2


def step(tokens: Tensor, logits: Tensor) -> Tensor:
    if END in tokens:  # FAULT: device-sync
        logits = logits - 1.0
    return logits.argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randint(0, 8, (batch_size,)), torch.randn(batch_size, 32)
