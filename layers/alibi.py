"""Attention with linear biases (Press et al. 2022): a slope per head in place of positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.layers.specs import AlibiSpec


def alibi_slopes(num_heads: int, spec: AlibiSpec, softmax_scale: float, device: torch.device) -> Tensor:
    """A slope per head, ``[num_heads] float32``: ``2^(-max_bias i / p)`` for i = 1 ... p, p a power of two.

    Where ``num_heads`` is none, p is the next one, and the slopes are the odd ones of p heads, then the even ones
    (as MPT and Bloom have it). ``scaled`` slopes are multiplied by the softmax scale.
    """
    power = 1 << (num_heads - 1).bit_length()
    slopes = torch.exp2(torch.arange(1, power + 1, dtype=torch.float32, device=device) * (-spec.max_bias / power))
    if power != num_heads:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[:num_heads]
    return slopes * softmax_scale if spec.scaled else slopes
