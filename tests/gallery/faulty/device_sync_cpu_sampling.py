"""The logits go to the host to be sampled and the tokens come back: error 900 at ``.cpu()``, then a pageable copy."""

import torch
from torch import Tensor

EMBEDDING = torch.randn(32, 8)


def step(hidden: Tensor) -> Tensor:
    logits = (hidden @ EMBEDDING.t()).cpu()  # FAULT: device-sync
    tokens = logits.argmax(-1)
    return EMBEDDING[tokens.to(hidden.device)]  # FAULT: host-to-device


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
