"""An index on the host is copied to the device inside of the indexing call: error 900."""

import torch
from torch import Tensor


def step(logits: Tensor, tokens: Tensor) -> Tensor:
    rows = torch.arange(logits.shape[0])
    return logits[rows, tokens]  # FAULT: cpu-tensor or host-to-device


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 32), torch.randint(0, 32, (batch_size,))
