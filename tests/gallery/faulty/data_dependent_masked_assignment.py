"""``x[mask] = tensor`` counts the true elements first: error 900. (``x[mask] = 0.0`` would be a masked fill.)"""

import torch
from torch import Tensor


def step(hidden: Tensor, is_image: Tensor, image: Tensor) -> Tensor:
    hidden = hidden.clone()
    hidden[is_image] = image  # FAULT: data-dependent-shape
    return hidden


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), (torch.arange(batch_size) + variant) % 2 == 0, torch.randn(8)
