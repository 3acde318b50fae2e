"""Gated feed-forward network (Shazeer 2020) with gate and up projections in one weight."""

from __future__ import annotations

from torch import Tensor, nn

from ostinato.layers.activation import ACTIVATIONS
from ostinato.layers.linear import Linear
from ostinato.layers.specs import FfnSpec


class GatedMlp(nn.Module):
    """``down(activation(gate(x)) * up(x))``; ``gate_up`` holds the rows of gate, then those of up."""

    def __init__(self, hidden_size: int, spec: FfnSpec) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, 2 * spec.intermediate_size, bias=spec.bias)
        self.down = Linear(spec.intermediate_size, hidden_size, bias=spec.bias)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, hidden_size] -> [rows, hidden_size]``."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(self.activation(gate) * up)
        return out
