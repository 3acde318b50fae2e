"""pytorch#170604: the result of the first run is read after the second has written over it.

Seen: "accessing tensor output of CUDAGraphs that has been overwritten", in spite of marking each step's begin.
"""

import torch
from torch import Tensor


class Collector:
    """Keeps what each call returned, as `y1 = model(x); y2 = model(x); print(y1)` does."""

    def __init__(self) -> None:
        self.results: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, x.t())
        self.results.append(y)  # FAULT: output-overwritten
        return y.sum(-1)


step = Collector()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
