"""vllm#48251: what is derived from the weights is bound anew at each reload; graphs keep the old address.

Seen: after a reload, and badly after a level-2 sleep, models answered from weights that were no longer theirs.
"""

import torch
from torch import Tensor


class LatentAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kv_b = torch.nn.Parameter(torch.randn(8, 16), requires_grad=False)
        self.process_weights_after_loading()

    def process_weights_after_loading(self) -> None:
        self.w_uv = self.kv_b[:, 8:].contiguous()

    def reload(self) -> None:
        self.kv_b.copy_(torch.randn(8, 16))
        self.process_weights_after_loading()

    def forward(self, latent: Tensor) -> Tensor:
        return latent @ self.w_uv  # FAULT: address-change


step = LatentAttention()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    """Between the steps the weights are reloaded, as a trainer does."""
    torch.manual_seed(variant)
    if variant:
        step.reload()
    return (torch.randn(batch_size, 8),)
