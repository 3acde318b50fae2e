"""Activations by the names that config.json uses, and the ways a gate and a value combine."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ostinato.layers.specs import ClampedGlu


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (Hendrycks & Gimpel 2016, section 2)."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, as CLIP."""
    return x * torch.sigmoid(1.702 * x)


def relu_squared(x: Tensor) -> Tensor:
    """``max(x, 0)^2`` (So et al. 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu2": relu_squared,
}


def gate_with(activation: str, clamped: ClampedGlu | None, gate: Tensor, up: Tensor) -> Tensor:
    """``activation(gate) * up``, or the clamped form; all of one shape."""
    if clamped is None:
        return ACTIVATIONS[activation](gate) * up
    gate = gate.clamp(max=clamped.limit)
    up = up.clamp(-clamped.limit, clamped.limit)
    return (up + clamped.beta) * (gate * torch.sigmoid(clamped.alpha * gate))
