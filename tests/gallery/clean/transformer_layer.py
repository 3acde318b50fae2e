"""A decoder layer with a fused projection, a static cache and a gated MLP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.gate_up = nn.Linear(8, 32, bias=False)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, hidden: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
        query, key, value = self.qkv(F.rms_norm(hidden, (8,))).chunk(3, -1)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        cache[0, rows, positions] = key
        cache[1, rows, positions] = value
        inside = torch.arange(cache.shape[2], device=hidden.device) <= positions[:, None]
        values = torch.where(inside[..., None], cache[1], 0.0)
        out = F.scaled_dot_product_attention(query[:, None], cache[0], values, attn_mask=inside[:, None])
        hidden = hidden + out[:, 0]
        gate, up = self.gate_up(F.rms_norm(hidden, (8,))).chunk(2, -1)
        return hidden + self.down(F.silu(gate) * up)


step = Layer().requires_grad_(False)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    positions = torch.tensor([2 + (row + 3 * variant) % 12 for row in range(batch_size)])
    return torch.randn(batch_size, 8), torch.randn(2, batch_size, 16, 8), positions
