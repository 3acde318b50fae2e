"""Feed-forward networks: gated, with gate and up projections in one weight, or plain."""

from __future__ import annotations

from torch import Tensor, nn

from ostinato.layers.activation import ACTIVATIONS, gate_with
from ostinato.layers.linear import Linear
from ostinato.layers.moe import MoE
from ostinato.layers.specs import FfnSpec, MoeSpec


class GatedMlp(nn.Module):
    """``down(activation(gate(x)) * up(x))`` (Shazeer 2020); ``gate_up`` holds the rows of gate, then those of up."""

    def __init__(self, hidden_size: int, spec: FfnSpec) -> None:
        super().__init__()
        self.spec = spec
        self.gate_up = Linear(hidden_size, 2 * spec.intermediate_size, bias=spec.bias)
        self.down = Linear(spec.intermediate_size, hidden_size, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, hidden_size] -> [rows, hidden_size]``."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(gate_with(self.spec.activation, self.spec.clamped, gate, up))
        return out


class PlainMlp(nn.Module):
    """``down(activation(up(x)))``."""

    def __init__(self, hidden_size: int, spec: FfnSpec) -> None:
        super().__init__()
        self.up = Linear(hidden_size, spec.intermediate_size, bias=spec.bias)
        self.down = Linear(spec.intermediate_size, hidden_size, bias=spec.bias)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, hidden_size] -> [rows, hidden_size]``."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


def make_ffn(hidden_size: int, spec: FfnSpec | MoeSpec) -> nn.Module:
    """The module that ``spec`` describes, its parameters allocated empty."""
    if isinstance(spec, MoeSpec):
        return MoE(hidden_size, spec)
    return (GatedMlp if spec.gated else PlainMlp)(hidden_size, spec)
