"""How far two runs are apart: tensors by name, and Python values by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two elements; NaN equals NaN; infinite if the shapes differ."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    if one.numel() == 0 or torch.equal(one, other):
        return 0.0
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    a, b = one.double(), other.double()
    same = (a == b) | (a.isnan() & b.isnan())
    apart = (a - b).abs().masked_fill(same, 0.0).max().item()
    return math.inf if math.isnan(apart) else apart


def number(apart: float) -> float | None:
    """A difference for JSON, which has no infinity: None."""
    return apart if math.isfinite(apart) else None


def apart(values: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, float]:
    """Difference by name, of the names that both have, where it is not zero."""
    both = {name: difference(values[name], others[name]) for name in values if name in others}
    return {name: by for name, by in both.items() if by > 0}


def changed(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Plain values that differ, by name."""
    both = ((name, values[name], others[name]) for name in values if name in others)
    return {name: (one, other) for name, one, other in both if one != other and not (one != one and other != other)}


def describe(by: float) -> str:
    """For people: ``1.9``, or that there is no number for it."""
    return f"{by:.3g}" if math.isfinite(by) else "NaN, infinity or another shape"
