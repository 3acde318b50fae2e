"""Normalisation in fp32, whatever the activations' dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
        return self.weight * _unit_rms(x, self.eps).to(x.dtype)


class GemmaNorm(nn.Module):
    """``(1 + weight) * (x / sqrt(mean(x^2) + eps))``, rounded once at the end."""

    def __init__(self, size: int, spec: NormSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = spec.eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size] -> [..., size]``, same dtype."""
        return (_unit_rms(x, self.eps) * (1.0 + self.weight.float())).to(x.dtype)


class LayerNorm(nn.Module):
    """Zero mean, unit variance, then ``weight`` and perhaps ``bias`` (Ba et al. 2016)."""

    def __init__(self, size: int, spec: NormSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size), requires_grad=False) if spec.bias else None
        self.eps = spec.eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size] -> [..., size]``, same dtype."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def make_norm(size: int, spec: NormSpec) -> nn.Module:
    """The module that ``spec`` describes, its parameters allocated empty."""
    return {"rms": RMSNorm, "gemma": GemmaNorm, "layer": LayerNorm}[spec.kind](size, spec)


def _unit_rms(x: Tensor, eps: float) -> Tensor:
    """``x`` in fp32 with a root mean square of one over the last dimension."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
