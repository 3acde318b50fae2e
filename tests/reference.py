"""What transformers computes: logits and greedy tokens by its whole forward pass, without a cache.

Quirks that this avoids: ``generate`` takes token 0 for padding unless it is given a mask; a cache keeps the keys of
Phi-3's short rope where a longer text needs the long one. Falcon rounds ALiBi to bfloat16, which is exact for powers of
two and 256 positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 2e-5
"""Of the largest logit: how far apart two fp32 computations of the same model may be."""


def reference_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """The logits after each token, ``[len(ids), vocab_size] float32``."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits.float()


def reference_tokens(model: Any, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """``count`` greedy tokens after each of ``prompts``, which must be of one length: they share their passes."""
    ids = torch.tensor([list(prompt) for prompt in prompts])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(count):
            logits = model(ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    tokens: list[list[int]] = ids[:, start:].tolist()
    return tokens


def disagreement(got: Tensor, want: Tensor) -> float:
    """The largest difference between two ``[tokens, vocab_size]``, by the largest logit of ``want``; NaN if any is."""
    return float((got - want).abs().max() / want.abs().max())


def agrees(got: Tensor, want: Tensor) -> bool:
    """Whether all logits are within ``TOLERANCE`` and every token's largest one is the same."""
    return disagreement(got, want) <= TOLERANCE and torch.equal(got.argmax(-1), want.argmax(-1))
