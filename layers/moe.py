"""Mixture of experts: a router, and the chosen experts of each token, weighted and summed.

Knows two forms. The opaque operator ``torch.ops.ostinato.experts`` groups tokens by expert on a CPU and gathers each
row's experts on a GPU, where nothing may depend on the data; a fused kernel would take its place. A single compiled row
reads its experts in place, as sums that Inductor turns into one pass over those rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostinato.layers.activation import gate_with
from ostinato.layers.forms import prefers_sums
from ostinato.layers.linear import Linear
from ostinato.layers.specs import ClampedGlu, MoeSpec, RoutingSpec


class ExpertLinear(nn.Module):
    """One projection of all experts: weight ``[num_experts, out_features, in_features]``, perhaps a bias."""

    def __init__(self, num_experts: int, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(num_experts, out_features), requires_grad=False) if bias else None


class MoE(nn.Module):
    """``sum over the chosen experts of weight * down(glu(gate_up(x)))``."""

    def __init__(self, hidden_size: int, spec: MoeSpec) -> None:
        super().__init__()
        self.spec = spec
        size = spec.intermediate_size
        self.router = Linear(hidden_size, spec.num_experts, bias=spec.routing.bias)
        if spec.routing.correction_bias:
            self.correction_bias = nn.Parameter(torch.empty(spec.num_experts), requires_grad=False)
        self.gate_up = ExpertLinear(spec.num_experts, hidden_size, 2 * size, bias=spec.bias)
        self.down = ExpertLinear(spec.num_experts, size, hidden_size, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, hidden_size] -> [rows, hidden_size]``."""
        spec, gate_up, down = self.spec, self.gate_up, self.down
        bias = self.correction_bias if spec.routing.correction_bias else None
        ids, weights = route(self.router(x).float(), spec.routing, spec.top_k, bias)
        if prefers_sums(x):
            return _one_row(x, ids[0], weights[0], spec, gate_up, down)
        glu = spec.clamped or ClampedGlu()
        activation = "" if spec.clamped else spec.activation
        out: Tensor = experts(
            x, ids, weights, gate_up.weight, gate_up.bias, down.weight, down.bias,
            activation, glu.alpha, glu.limit, glu.beta,
        )  # fmt: skip
        return out


def route(logits: Tensor, spec: RoutingSpec, top_k: int, correction_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """From ``logits [rows, num_experts] float32`` the experts ``[rows, top_k] int64`` and their float32 weights."""
    if spec.score == "topk_softmax":
        best, ids = logits.topk(top_k, dim=-1)
        return ids, best.softmax(-1)
    scores = logits.softmax(-1) if spec.score == "softmax" else logits.sigmoid()
    ids = (scores if correction_bias is None else scores + correction_bias.float()).topk(top_k, dim=-1).indices
    weights = scores.gather(-1, ids)
    if spec.renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids, weights


def _one_row(
    x: Tensor, ids: Tensor, weights: Tensor, spec: MoeSpec, gate_up: ExpertLinear, down: ExpertLinear
) -> Tensor:
    """``x [1, hidden_size]`` through experts ``ids [top_k]``: two reductions that read those experts' weights alone."""
    projected = (gate_up.weight[ids].float() * x.float()).sum(-1)  # [top_k, 2 * size]
    if gate_up.bias is not None:
        projected = projected + gate_up.bias[ids].float()
    gate, up = projected.to(x.dtype).chunk(2, dim=-1)
    hidden = gate_with(spec.activation, spec.clamped, gate, up)
    out = (down.weight[ids].float() * hidden.float()[:, None, :]).sum(-1)  # [top_k, hidden_size]
    if down.bias is not None:
        out = out + down.bias[ids].float()
    return (out * weights[:, None]).sum(0, keepdim=True).to(x.dtype)


@torch.library.custom_op("ostinato::experts", mutates_args=())
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str,
    alpha: float,
    limit: float,
    beta: float,
) -> Tensor:
    """``x [rows, hidden_size]`` through experts ``ids [rows, top_k]`` with ``weights``: ``[rows, hidden_size]``.

    gate_up ``[num_experts, 2 * size, hidden_size]``, down ``[num_experts, hidden_size, size]``, biases with one
    dimension less; an empty ``activation`` means the clamped gate of ``alpha``, ``limit`` and ``beta``. Sums are fp32.
    """
    clamped = None if activation else ClampedGlu(alpha, limit, beta)

    def expert(rows: Tensor, take: Callable[[Tensor], Tensor]) -> Tensor:
        """``rows [n, hidden_size]`` through the expert that ``take`` takes from each stack."""
        bias = None if gate_up_bias is None else take(gate_up_bias)
        gate, up = F.linear(rows, take(gate_up), bias).chunk(2, dim=-1)
        hidden = gate_with(activation, clamped, gate, up)
        return F.linear(hidden, take(down), None if down_bias is None else take(down_bias)).float()

    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if x.device.type == "cpu":
        for index, rows, columns in _by_expert(ids, gate_up.shape[0]):
            done = expert(x[rows], itemgetter(index))
            out.index_add_(0, rows, done * weights[rows, columns, None])
        return out.to(x.dtype)
    for row in range(ids.shape[0]):  # nothing here depends on the values, so it can be captured
        for column in range(ids.shape[1]):
            done = expert(x[row : row + 1], _taker(ids[row, column : column + 1]))
            out[row] += done[0] * weights[row, column]
    return out.to(x.dtype)


@experts.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _taker(index: Tensor) -> Callable[[Tensor], Tensor]:
    """Takes the element at ``index [1]`` of a stack, without asking the device for its value."""
    return lambda stack: stack.index_select(0, index)[0]


def _by_expert(ids: Tensor, num_experts: int) -> list[tuple[int, Tensor, Tensor]]:
    """For each expert that is used: its index, and the rows and columns of ``ids [rows, top_k]`` that name it."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    groups = order.split(torch.bincount(flat, minlength=num_experts).tolist())
    return [(index, group // ids.shape[1], group % ids.shape[1]) for index, group in enumerate(groups) if len(group)]
