"""A cache keyed by request: the keys are guarded, and each set of requests compiles the step again."""

import torch
from torch import Tensor


def step(hidden: Tensor, states: dict[str, Tensor]) -> Tensor:  # FAULT: recompile (either)
    for state in states.values():  # FAULT: recompile (either)
        hidden = hidden + state
    return hidden.tanh()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), {f"request-{variant}": torch.randn(8), f"request-{variant + 1}": torch.randn(8)}
