"""transformers#29114: the static cache counted its tokens in a Python int, which moves at capture only.

Seen: under torch.compile the cache's count "is somehow not updated".
"""

import torch
from torch import Tensor


class StaticCache:
    """Keys of up to 16 tokens for 8 rows."""

    def __init__(self) -> None:
        self.keys = torch.zeros(16, 8, 8)
        self.seen_tokens = 0

    def update(self, key: Tensor) -> Tensor:
        self.keys[self.seen_tokens % 16, : key.shape[0]] = key  # FAULT: frozen-value
        self.seen_tokens += 1  # FAULT: python-side-effect
        return self.keys[:, : key.shape[0]]


CACHE = StaticCache()


def step(query: Tensor, key: Tensor) -> Tensor:
    keys = CACHE.update(key)
    return torch.einsum("bh,tbh->bt", query, keys).softmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 8)
