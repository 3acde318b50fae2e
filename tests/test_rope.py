"""Rotary positions against transformers: frequencies of every scaling, tables, and the rotation itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from ostinato.layers.rope import apply_rope, inverse_frequencies, rope_table
from ostinato.layers.specs import RopeScaling, RopeSpec
from ostinato.models.config_json import ConfigJson
from ostinato.models.rope_json import rope_spec

CASES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "default_long": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3_8": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama3_32": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 32.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 16.0,
        "original_max_position_embeddings": 4096,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn_untruncated": {
        "rope_type": "yarn",
        "rope_theta": 1.5e5,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "yarn_betas": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 16.0,
        "beta_fast": 8.0,
        "beta_slow": 0.5,
        "original_max_position_embeddings": 2048,
    },
    "yarn_attention_factor": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 2.0,
        "attention_factor": 0.7,
        "original_max_position_embeddings": 1024,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "yarn_one_pair_ramp": {  # both ends of the ramp fall on one dimension
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
    },
}
HEAD_DIM = 64


def both(name: str) -> tuple[RopeSpec, LlamaRotaryEmbedding]:
    """Our spec and transformers' module of one case, both read from the same config."""
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM, num_attention_heads=4, max_position_embeddings=8192, rope_parameters=dict(CASES[name])
    )
    return rope_spec(ConfigJson(config.to_dict()), HEAD_DIM), LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    spec, reference = both(name)
    torch.testing.assert_close(inverse_frequencies(spec), reference.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_tables_are_those_of_transformers(name: str) -> None:
    """To the last bits of the angle: position 500 times a frequency's rounding."""
    spec, reference = both(name)
    cos, sin = rope_table(spec, 500)
    want_cos, want_sin = reference(torch.zeros(1), torch.arange(500)[None])
    half = HEAD_DIM // 2
    torch.testing.assert_close(cos, want_cos[0, :, :half], rtol=0, atol=5e-5)
    torch.testing.assert_close(sin, want_sin[0, :, :half], rtol=0, atol=5e-5)
    torch.testing.assert_close(cos[0], want_cos[0, 0, :half], rtol=1e-6, atol=0)  # the attention factor, alone


def test_the_table_is_cos_and_sin_of_position_times_frequency() -> None:
    spec = RopeSpec(1e4, 8)
    cos, sin = rope_table(spec, 6)
    assert cos.shape == sin.shape == (6, 4)
    for position in range(6):
        for pair in range(4):
            angle = position * 1e4 ** (-2 * pair / 8)
            assert cos[position, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_tables_are_float32_whatever_the_default_dtype() -> None:
    spec = RopeSpec(1e4, 8, RopeScaling("yarn", 4.0, 64, attention_factor=1.2))
    want = rope_table(spec, 6)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        got = rope_table(spec, 6)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def rotated_by_transformers(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x [rows, heads, dim]`` through ``rotate_half``, in float32."""
    wide = [torch.cat([table, table], -1)[None] for table in (cos, sin)]
    q, _ = apply_rotary_pos_emb(x.float().transpose(0, 1)[None], x.float().transpose(0, 1)[None], *wide)
    return q[0].transpose(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rotation_is_that_of_transformers(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    cos, sin = (table[[0, 1, 7, 7, 99]] for table in rope_table(RopeSpec(1e4, 16), 100))
    got = apply_rope(x, cos, sin)
    assert got.dtype is dtype
    torch.testing.assert_close(got, rotated_by_transformers(x, cos, sin).to(dtype))


@pytest.mark.parametrize("rotary_dim", [16, 8])
def test_neighbours_are_rotated_as_gpt_j_does(rotary_dim: int) -> None:
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb

    x = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = (table[[0, 1, 7, 7, 99]] for table in rope_table(RopeSpec(1e4, rotary_dim), 100))
    got = apply_rope(x, cos, sin, interleaved=True)
    want = apply_rotary_pos_emb(x[None, ..., :rotary_dim], sin[None], cos[None])[0]
    torch.testing.assert_close(got[..., :rotary_dim], want)
    assert torch.equal(got[..., rotary_dim:], x[..., rotary_dim:])


def test_what_lies_behind_the_rotary_dimensions_passes_through() -> None:
    x = torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = (table[[3, 1, 4, 1]] for table in rope_table(RopeSpec(1e4, 12), 5))
    got = apply_rope(x, cos, sin)
    assert torch.equal(got[..., 12:], x[..., 12:])
    torch.testing.assert_close(got[..., :12], rotated_by_transformers(x[..., :12], cos, sin))


def test_position_0_is_not_rotated() -> None:
    x = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_rope(x, *(table[:1] for table in rope_table(RopeSpec(1e4, 8), 1))), x)


def test_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 32, generator=generator), torch.randn(1, 1, 32, generator=generator)
    cos, sin = rope_table(RopeSpec(1e4, 32), 120)

    def score(query_at: int, key_at: int) -> float:
        rotated = [apply_rope(x, cos[[at]], sin[[at]]) for x, at in ((q, query_at), (k, key_at))]
        return float((rotated[0] * rotated[1]).sum())

    assert score(10, 3) == pytest.approx(score(107, 100), abs=1e-4)
    assert score(10, 3) != pytest.approx(score(10, 4), abs=1e-2)
