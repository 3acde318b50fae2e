"""Norm, projections, embedding and feed-forward against transformers' modules and plain matrix products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from ostinato.layers import forms
from ostinato.layers import linear as linear_module
from ostinato.layers.embedding import Embedding
from ostinato.layers.linear import Linear, linear
from ostinato.layers.mlp import GatedMlp
from ostinato.layers.norm import RMSNorm
from ostinato.layers.specs import FfnSpec, NormSpec

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fill(module: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    """Every parameter random, in ``dtype``."""
    module.to(dtype)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=seed))
    return module


# Norm.


@DTYPES
@pytest.mark.parametrize("shape", [(3, 32), (2, 5, 32)])
def test_the_norm_is_that_of_transformers_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    reference = fill(Qwen3RMSNorm(32, eps=1e-3), dtype)
    ours = RMSNorm(32, NormSpec(1e-3)).to(dtype)
    ours.load_state_dict(reference.state_dict())
    x = randn(*shape, seed=7, dtype=dtype)
    got = ours(x)
    assert got.dtype is dtype
    assert torch.equal(got, reference(x))


def test_the_norm_of_bfloat16_is_taken_in_float32() -> None:
    """The mean of squares overflows float16 and loses small terms in bfloat16: neither may be summed."""
    norm = RMSNorm(1024, NormSpec(0.0))
    nn.init.ones_(norm.weight)
    for dtype in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(
            norm.to(dtype)(torch.full((1, 1024), 300.0, dtype=dtype)), torch.ones(1, 1024).to(dtype)
        )


def test_epsilon_keeps_a_zero_vector_finite() -> None:
    norm = fill(RMSNorm(8, NormSpec(1e-6)))
    assert torch.equal(norm(torch.zeros(1, 8)), torch.zeros(1, 8))


# Linear.


@DTYPES
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sums", [False, True])
def test_both_forms_of_a_projection_equal_the_product(
    sums: bool, bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "prefers_sums", lambda _: sums)
    layer, x = fill(Linear(48, 20, bias=bias), dtype), randn(1, 48, seed=9, dtype=dtype)
    want = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    got = layer(x)
    assert got.shape == (1, 20)
    assert got.dtype is dtype
    assert (got.double() - want).abs().max() <= (1e-6 if dtype is torch.float32 else 5e-3) * want.abs().max()


def test_the_sum_form_rounds_once_at_the_end() -> None:
    """In bfloat16 the bias is added before rounding, as a fused matrix kernel does."""
    x, weight, bias = (torch.tensor(v, dtype=torch.bfloat16) for v in ([[1.0, 1.0]], [[256.0, 1.0]], [0.5]))
    forced = pytest.MonkeyPatch()
    forced.setattr(linear_module, "prefers_sums", lambda _: True)
    try:
        got = linear(x, weight, bias)
    finally:
        forced.undo()
    assert got.item() == 258  # 257.5; the 257 of the product alone is a tie that goes to 256


@pytest.mark.parametrize(
    ("compiling", "shape", "device", "wanted"),
    [
        (True, (1, 4), "cpu", True),
        (True, (2, 4), "cpu", False),
        (False, (1, 4), "cpu", False),
        (True, (1, 4), "meta", False),
    ],
)
def test_sums_are_for_one_row_compiled_on_a_cpu(
    compiling: bool, shape: tuple[int, ...], device: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert forms.prefers_sums(torch.empty(shape, device=device)) is wanted


# Feed-forward and embedding.


@DTYPES
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_the_feed_forward_is_that_of_transformers(activation: str, bias: bool, dtype: torch.dtype) -> None:
    config = LlamaConfig(hidden_size=32, intermediate_size=56, mlp_bias=bias, hidden_act=activation)
    reference = fill(LlamaMLP(config), dtype)
    ours = GatedMlp(32, FfnSpec(56, activation, bias)).to(dtype)
    for kind in ("weight", "bias") if bias else ("weight",):
        both = [getattr(projection, kind) for projection in (reference.gate_proj, reference.up_proj)]
        getattr(ours.gate_up, kind).data.copy_(torch.cat(both))
        getattr(ours.down, kind).data.copy_(getattr(reference.down_proj, kind))
    x = randn(5, 32, seed=9, dtype=dtype)
    with torch.no_grad():
        got, want = ours(x), reference(x)
    bound = 1e-6 if dtype is torch.float32 else 1e-2
    assert (got - want).abs().max() <= bound * want.abs().max()


def test_the_embedding_is_a_row_per_token() -> None:
    table = fill(Embedding(10, 4))
    assert torch.equal(table(torch.tensor([3, 3, 9])), table.weight[[3, 3, 9]])


def test_no_parameter_asks_for_gradients() -> None:
    modules = (RMSNorm(4, NormSpec(0.0)), Linear(2, 2, bias=True), Embedding(3, 2), GatedMlp(2, FfnSpec(2, "silu")))
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
