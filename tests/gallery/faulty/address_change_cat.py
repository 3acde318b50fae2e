"""The cache grows by ``cat``: the graph reads and fills the memory it had at capture and never sees the new one."""

import torch
from torch import Tensor


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys = torch.zeros(1, 8)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        self.keys = torch.cat([self.keys, key.sum(0, keepdim=True)])  # FAULT: address-change
        return (query @ self.keys.t()).softmax(-1)


step = Attention()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 8)
