"""Normalisation in fp32, whatever the activations' dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.layers.specs import NormSpec


class RMSNorm(nn.Module):
    """``weight * (x / sqrt(mean(x^2) + eps))`` over the last dimension (Zhang & Sennrich 2019, eq. 4).

    The normalised value is rounded to the activations' dtype before the weight is applied, as Llama does.
    """

    def __init__(self, size: int, spec: NormSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = spec.eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size] -> [..., size]``, same dtype."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)
