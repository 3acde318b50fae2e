"""Each expert gathers its tokens: how many there are is known to the device only, error 900 (Mixtral's first port)."""

import torch
from torch import Tensor

EXPERTS = torch.randn(4, 8, 8)


def step(hidden: Tensor, router: Tensor) -> Tensor:
    chosen = (hidden @ router).argmax(-1)
    out = torch.zeros_like(hidden)
    for expert, weight in enumerate(EXPERTS):
        (tokens,) = (chosen == expert).nonzero(as_tuple=True)  # FAULT: data-dependent-shape
        out.index_add_(0, tokens, hidden.index_select(0, tokens) @ weight)
    return out


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 4)
