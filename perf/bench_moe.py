"""A mixture of experts for one token, against the same layer computing every expert, in one compiled form each.

Sizes of one layer of Qwen3-30B-A3B cut to 64 experts: a token takes 8. The layer reads the router and the experts it
chose; the dense computation reads all. Another token comes each time, so other experts are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ostinato.graphs.ambient import neutral_state
from ostinato.graphs.compiled import CompiledPiece
from ostinato.layers.activation import gate_with
from ostinato.layers.moe import MoE
from ostinato.layers.specs import MoeSpec, RoutingSpec
from ostinato.perf.measure import Summary, interleave
from ostinato.perf.report import Figure
from ostinato.perf.workbench import Workbench

HIDDEN, SPEC = 1024, MoeSpec(64, 8, 768, "silu", RoutingSpec("softmax", renormalise=True))
TOKENS = 32


def measure(bench: Workbench) -> list[Figure]:
    """The ratio, and the rate at which the chosen experts' bytes are read."""
    torch.manual_seed(0)
    layer = MoE(HIDDEN, SPEC)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape).mul_(0.02).bfloat16()
    tokens = torch.randn(TOKENS, 1, HIDDEN).bfloat16()
    with neutral_state("cpu"):
        contenders = {
            "chosen": _timed(CompiledPiece(_chosen, lambda *_: ()), layer, tokens),
            "all": _timed(CompiledPiece(_all_experts, lambda *_: ()), layer, tokens),
        }
        seconds = interleave(contenders, bench.rounds, bench.progress)
    used = SPEC.top_k * 3 * SPEC.intermediate_size * HIDDEN * 2
    ratio = Summary.of_ratio(seconds["all"], seconds["chosen"])
    fastest = Summary.of([used / each / 1e9 for each in seconds["chosen"]])
    note = f"one token, {SPEC.top_k} of {SPEC.num_experts} experts: all / chosen"
    return [
        Figure.of("moe.vs_all_experts", ratio, "x", note=note),
        Figure.of("moe.gb_per_second", fastest, "GB/s", note="bytes of the chosen experts over the layer's time"),
    ]


def _chosen(layer: MoE, x: Tensor) -> Tensor:
    out: Tensor = layer(x)
    return out


def _all_experts(layer: MoE, x: Tensor) -> Tensor:
    """Every expert's output for ``x [1, hidden]``, in the form of products that is fastest for one row; their sum."""
    projected = (layer.gate_up.weight.float() * x.float()).sum(-1).to(x.dtype)
    gate, up = projected.chunk(2, dim=-1)
    hidden = gate_with(SPEC.activation, None, gate, up)
    return (layer.down.weight.float() * hidden.float()[:, None, :]).sum(-1).sum(0, keepdim=True).to(x.dtype)


def _timed(run: Callable[..., Tensor], layer: MoE, tokens: Tensor) -> Callable[[], float]:
    """Seconds a token, over ``tokens``."""

    def once() -> float:
        began = time.perf_counter()
        for token in tokens:
            run(layer, token)
        return (time.perf_counter() - began) / len(tokens)

    return once
