"""A branch on a Python length is taken once, at capture; replay never takes the other."""

import torch
import torch.nn.functional as F
from torch import Tensor


def step(hidden: Tensor, max_len: int) -> Tensor:
    gate = F.gelu(hidden) if max_len > 64 else F.silu(hidden)  # FAULT: frozen-value
    return hidden * gate


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), 40 + 60 * variant
