"""Which of transformers' ways to run chosen experts a step takes: those whose shapes do not depend on the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface, batched_mm_experts_forward, grouped_mm_experts_forward

NAME = "ostinato_experts"


def _experts(module: nn.Module, hidden: Tensor, *routing: Any) -> Tensor:
    """One row reads its own experts; several are grouped by expert, each expert read once."""
    if hidden.is_meta:  # grouped products of fp32 have no meta function
        return torch.empty_like(hidden)
    forward = batched_mm_experts_forward if hidden.shape[0] == 1 else grouped_mm_experts_forward
    out: Tensor = forward(module, hidden, *routing)
    return out


ExpertsInterface.register(NAME, _experts)
