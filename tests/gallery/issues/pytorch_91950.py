"""pytorch#91950: a generator of the pipeline's own inside of a captured module: "unexpected CUDA generator".

Seen: "philox_cuda_state for an unexpected CUDA generator used during capture", which names no line.
"""

import torch
from torch import Tensor, nn


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 8)
        self.generator = torch.Generator(device=torch.get_default_device()).manual_seed(42)

    def forward(self, latent: Tensor) -> Tensor:
        noise = torch.randn(latent.shape, generator=self.generator, device=latent.device)  # FAULT: rng
        return self.net(latent) + 0.1 * noise


step = Denoiser().requires_grad_(False)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
