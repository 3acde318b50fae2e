"""A closure over a Python value is compiled inside of the step: each new value compiles while a request waits."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor, width: int) -> Tensor:
    def project(x: Tensor) -> Tensor:
        return torch.tanh(x[:, :width]) @ weight[:width]

    compiled = torch.compile(project, backend="eager", dynamic=False)  # FAULT: late-compile (either)
    return compiled(hidden)  # FAULT: late-compile (either)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8), 4 + variant
