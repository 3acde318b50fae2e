"""The first call masks its scores, the second does not: a capture after the warm-up records the wrong one."""

import torch
from torch import Tensor


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = True

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        scores = torch.einsum("bh,bth->bt", query, keys)
        if self.first:  # FAULT: warmup-dependent (either)
            scores = scores.clamp(min=-4.0)  # FAULT: warmup-dependent (either)
            self.first = False
        return scores.softmax(-1)


step = Attention()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8)
