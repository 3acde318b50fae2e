"""Weights are replaced between steps instead of copied into: replay multiplies with the old ones (vllm#48941)."""

import torch
from torch import Tensor


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(32, 8), requires_grad=False)

    def reload(self) -> None:
        self.weight = torch.nn.Parameter(torch.randn(32, 8), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight.t()  # FAULT: address-change


step = Head()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    if variant:
        step.reload()
    return (torch.randn(batch_size, 8),)
