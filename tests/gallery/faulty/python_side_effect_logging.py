"""A log line for each step is written for the captured one only."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger("decode")
logger.addHandler(logging.NullHandler())
logger.setLevel(logging.INFO)
logger.propagate = False


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    logger.info("decode step of %d rows", hidden.shape[0])  # FAULT: python-side-effect
    return torch.tanh(hidden @ weight)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
