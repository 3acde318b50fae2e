"""``F.dropout`` is on unless told otherwise: the capture keeps it, and a decode step that should repeat does not."""

import torch
import torch.nn.functional as F
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    hidden = F.dropout(hidden, 0.1)  # FAULT: rng
    return hidden @ weight


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
