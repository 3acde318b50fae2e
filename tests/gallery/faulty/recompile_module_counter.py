"""A cache that counts its tokens in a Python attribute: the attribute is guarded, and grows (torchtune#1663)."""

import torch
from torch import Tensor


class Cache(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(16, 8))
        self.size = 0

    def forward(self, key: Tensor) -> Tensor:  # FAULT: recompile (either)
        self.keys[self.size % 16] = key.sum(0)  # FAULT: recompile (either)
        self.size = self.size + 1  # FAULT: recompile (either)
        return key @ self.keys.t()


step = Cache()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
