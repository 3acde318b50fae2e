"""``one_hot`` without ``num_classes`` reads the largest index to know its width: error 900."""

import torch
import torch.nn.functional as F
from torch import Tensor


def step(hidden: Tensor, experts: Tensor) -> Tensor:
    routing = F.one_hot(experts)  # FAULT: data-dependent-shape
    return routing.to(hidden.dtype).t() @ hidden


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randint(0, 4, (batch_size,))
