"""How a query's product with a key becomes its score: everything that is not the product itself."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scoring(NamedTuple):
    """``score = softcap(scale * q k) + slope * (key position - query position)``, where the window allows it."""

    scale: float
    window: int = 0
    """A query at position q sees keys at ``q - window < k <= q``; 0: all ``k <= q``."""
    softcap: float = 0.0
    """``softcap * tanh(score / softcap)`` (Gemma 2); 0: none."""
    slopes: Tensor | None = None
    """``[num_heads] float32``: ALiBi."""
    sinks: Tensor | None = None
    """``[num_heads]``: a further score of each head, which weighs and yields nothing (gpt-oss)."""


def capped(scores: Tensor, softcap: float) -> Tensor:
    """``scores`` kept within +- ``softcap``, smoothly; 0 leaves them."""
    return (scores / softcap).tanh() * softcap if softcap else scores
