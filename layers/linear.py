"""Dense projection, fused where the model allows (q|k|v, gate|up): one weight, one read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostinato.layers.forms import prefers_sums


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: ``x [rows, in_features]``, ``weight [out_features, in_features]``; in ``x.dtype``."""
    if not prefers_sums(x):
        return F.linear(x, weight, bias)
    y = (weight.float() * x.float()).sum(-1, dtype=torch.float32)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).unsqueeze(0)


class Linear(nn.Module):
    """A weight ``[out_features, in_features]`` and an optional bias ``[out_features]``, allocated empty."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, in_features] -> [rows, out_features]``."""
        return linear(x, self.weight, self.bias)
