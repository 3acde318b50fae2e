"""A logger's call ends the graph, though the level is off (transformers does this in its caches)."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    hidden = hidden @ weight
    logger.debug("hidden %s", tuple(hidden.shape))  # FAULT: graph-break
    return hidden.relu()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
