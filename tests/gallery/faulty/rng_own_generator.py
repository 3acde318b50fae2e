"""A generator that the graph does not know: refused at capture, or the same numbers in every replay (pytorch#91950)."""

import torch
from torch import Tensor


class Sampler(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator(device=torch.get_default_device())

    def forward(self, logits: Tensor) -> Tensor:
        noise = torch.rand(logits.shape, generator=self.generator, device=logits.device)  # FAULT: rng
        return (logits + noise).argmax(-1)


step = Sampler()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 32),)
