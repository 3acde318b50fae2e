"""config.json to ModelSpec: what transformers understands, both dialects, and refusals by name."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ostinato.errors import ModelLoadError
from ostinato.layers.rope import inverse_frequencies
from ostinato.models import registry
from ostinato.models.decoder import count_parameters
from ostinato.models.registry import family_for, register_model
from ostinato.models.spec import ModelSpec, RopeScaling, RopeSpec
from tiny_checkpoints import VARIANTS, build

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 112,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
}
QWEN3: dict[str, Any] = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16}


def parse(config: dict[str, Any]) -> ModelSpec:
    return family_for(config).spec(config)


def rope_of(config: dict[str, Any]) -> RopeSpec:
    return parse(config).layers[0].attention.rope


@pytest.mark.parametrize("variant", VARIANTS)
def test_spec_agrees_with_the_transformers_model(variant: str, tmp_path: Path) -> None:
    model = build(variant, tmp_path)
    spec = parse(json.loads((tmp_path / "config.json").read_text()))
    config, attention = model.config, spec.layers[0].attention
    assert spec.architecture == VARIANTS[variant][0]
    assert count_parameters(spec) == sum(p.numel() for p in model.parameters())
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
    )
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    assert attention.scale == model.model.layers[0].self_attn.scaling
    assert (spec.norm.eps, spec.dtype, spec.max_position_embeddings) == (1e-3, "float32", 256)
    assert spec.tie_word_embeddings is config.tie_word_embeddings


SCALINGS = [
    {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    {"attention_factor": 1.5},
    {"mscale": 2.0, "mscale_all_dim": 1.0},
    {"mscale": 2.0},
]


@pytest.mark.parametrize(("variant", "settings"), [(v, {}) for v in VARIANTS] + [("llama_yarn", s) for s in SCALINGS])
def test_rotary_frequencies_equal_those_of_transformers(variant: str, settings: dict[str, Any], tmp_path: Path) -> None:
    rope_parameters = VARIANTS[variant][1]["rope_parameters"] | settings
    rotary = build(variant, tmp_path, rope_parameters=rope_parameters).model.rotary_emb
    rope = rope_of(json.loads((tmp_path / "config.json").read_text()))
    torch.testing.assert_close(inverse_frequencies(rope), rotary.inv_freq, rtol=1e-6, atol=0)
    factor = rope.scaling.attention_factor if rope.scaling else 1.0
    assert factor == pytest.approx(rotary.attention_scaling, rel=1e-12)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16, "truncate": False}


@pytest.mark.parametrize(
    ("kind", "settings"), [("default", {}), ("linear", {"factor": 2}), ("llama3", LLAMA3), ("yarn", YARN)]
)
def test_old_and_new_rope_keys_mean_the_same(kind: str, settings: dict[str, Any]) -> None:
    new = rope_of(LLAMA | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **settings}})
    assert rope_of(LLAMA | {"rope_theta": 500000, "rope_scaling": {"rope_type": kind, **settings}}) == new
    assert rope_of(LLAMA | {"rope_theta": 500000.0, "rope_scaling": {"type": kind, **settings}}) == new
    assert (new.theta, new.scaling.kind if new.scaling else "default") == (5e5, kind)
    if kind == "default":
        assert rope_of(LLAMA | {"rope_theta": 5e5, "rope_scaling": None}) == new


def test_rope_defaults_are_those_of_transformers() -> None:
    assert rope_of(LLAMA) == RopeSpec(10_000.0, 16, None)
    yarn = rope_of(LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0}}).scaling
    assert yarn == RopeScaling("yarn", 4.0, 256, attention_factor=pytest.approx(1.1386294361119891))
    both = rope_of(LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0}})
    assert both.scaling.attention_factor == pytest.approx(1.2772588722 / 1.1386294361)
    ratio = rope_of(LLAMA | {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 64}})
    assert ratio.scaling.factor == 256 / 64
    beside = LLAMA | {"original_max_position_embeddings": 32, "rope_scaling": {"type": "yarn", **YARN}}
    assert rope_of(beside).scaling.original_max_position == 32


def test_yarn_extends_the_longest_sequence() -> None:
    scaling = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 200}
    assert parse(QWEN3 | {"rope_scaling": scaling}).max_position_embeddings == 1600
    assert parse(QWEN3 | {"rope_scaling": scaling | {"type": "linear"}}).max_position_embeddings == 256


def test_two_rope_sections_must_agree() -> None:
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert rope_of(LLAMA | {"rope_parameters": new, "rope_scaling": {"type": "linear", "factor": 2.0}}).scaling
    with pytest.raises(ModelLoadError, match="rope_scaling: expected the same as in rope_parameters"):
        parse(LLAMA | {"rope_parameters": new, "rope_scaling": {"type": "linear", "factor": 4.0}})


def test_head_dim_defaults() -> None:
    assert parse(LLAMA).layers[0].attention.head_dim == 16
    assert parse(LLAMA | {"head_dim": None}).layers[0].attention.head_dim == 16
    assert parse(LLAMA | {"head_dim": 32}).layers[0].attention.q_size == 128
    without = {key: value for key, value in QWEN3.items() if key != "head_dim"}
    assert parse(without).layers[0].attention.head_dim == 128
    assert parse(QWEN3 | {"head_dim": None}).layers[0].attention.head_dim == 16


def test_a_minimal_llama_file_of_2023_parses() -> None:
    old = {key: LLAMA[key] for key in LLAMA if key not in ("num_key_value_heads", "max_position_embeddings")}
    spec = parse(old | {"pad_token_id": -1, "max_sequence_length": 2048})
    assert spec.layers[0].attention.num_kv_heads == 4
    assert spec.max_position_embeddings == 2048
    assert spec.dtype == "float16"


@pytest.mark.parametrize(
    "inactive",
    [
        {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"] * 2},
        {"quantization_config": None, "rope_scaling": {}, "hidden_act": None},
    ],
)
def test_settings_that_are_off_change_nothing(inactive: dict[str, Any]) -> None:
    assert parse(QWEN3 | inactive) == parse(QWEN3)


REFUSED = [
    (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window"),
    (QWEN3, {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, "sliding_window"),
    (QWEN3, {"layer_types": ["full_attention"]}, "layer_types"),
    (QWEN3, {"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
    (QWEN3, {"layer_types": "full_attention"}, "layer_types"),
    (LLAMA, {"sliding_window": 4096}, "sliding_window"),
    (LLAMA, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    (LLAMA, {"compression_config": {}}, "compression_config"),
    (LLAMA, {"hidden_act": "gelu_new_fancy"}, "hidden_act"),
    (LLAMA, {"dtype": "float8_e4m3fn"}, "dtype"),
    (LLAMA, {"torch_dtype": "int8"}, "torch_dtype"),
    (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
    (LLAMA, {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "long_factor"),
    (LLAMA, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    (LLAMA, {"rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]}}, "mrope_section"),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, "factor"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
    (LLAMA, {"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
    (LLAMA, {"rope_scaling": {"type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}}, "low_freq_factor"),
    (LLAMA, {"rope_scaling": "linear"}, "rope_scaling"),
    (LLAMA, {"rope_theta": 0}, "rope_theta"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (LLAMA, {"head_dim": 15}, "head_dim"),
    (LLAMA, {"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads"),
    (LLAMA, {"num_attention_heads": 6, "num_key_value_heads": 3}, "num_attention_heads"),
    (LLAMA, {"attention_bias": 1}, "attention_bias"),
    (LLAMA, {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    (LLAMA, {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
]


@pytest.mark.parametrize(("base", "change", "key"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(base: dict[str, Any], change: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"^config\.json: .*{key}: expected .*, got "):
        parse(base | change)


def test_switches_and_layer_types_of_windows(tmp_path: Path) -> None:
    """SmolLM3 goes by ``layer_types``; Qwen3-MoE has windows everywhere or nowhere: files that differ are refused."""
    build("smollm3_windows", tmp_path / "smollm3")
    config = json.loads((tmp_path / "smollm3" / "config.json").read_text())
    windows = [layer.attention.window for layer in parse(config).layers]
    assert any(windows)
    assert [layer.attention.window for layer in parse({**config, "use_sliding_window": False}).layers] == windows
    build("qwen3_moe_mixed", tmp_path / "moe")
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention"] * (config["num_hidden_layers"] // 2)
    with pytest.raises(ModelLoadError, match="layer_types: expected sliding_attention in all layers"):
        parse({**config, "layer_types": kinds})


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
BAD_SIZES = [None, 0, -64, "64", 64.0, True, [64], {}, 10**30, float("inf")]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", BAD_SIZES, ids=repr)
def test_sizes_are_typed_and_bounded(key: str, value: object) -> None:
    with pytest.raises(ModelLoadError, match=f"{key}: expected an integer from 1 to"):
        parse(LLAMA | {key: value})


def test_a_thousand_random_configs_parse_or_are_refused() -> None:
    rng = random.Random(0)
    junk = [None, True, -1, 0, 1, 2, 3, 7, 1e308, 10**20, "", "linear", "silu", [], [None], {}, {"type": "yarn"}, 0.5]
    sections = ["rope_scaling", "rope_parameters"]
    keys = [*QWEN3, *sections, "head_dim", "rope_theta", "layer_types", "sliding_window", "use_sliding_window"]
    inner = ["type", "factor", "rope_theta", "original_max_position_embeddings", "beta_fast", "low_freq_factor"]
    parsed = 0
    for _ in range(1000):
        config = rng.choice([LLAMA, QWEN3]) | {rng.choice(keys): rng.choice(junk) for _ in range(rng.randrange(3))}
        if rng.random() < 0.5:
            kind = {"type": rng.choice(["linear", "llama3", "yarn"]), **LLAMA3}
            config[rng.choice(sections)] = kind | {rng.choice(inner): rng.choice(junk)}
        try:
            parse(config)
            parsed += 1
        except ModelLoadError as error:
            assert str(error).startswith("config.json: ")
    assert 100 < parsed < 900


@pytest.mark.parametrize("names", [["MambaForCausalLM"], [], None, "LlamaForCausalLM", [3]])
def test_an_unsupported_architecture_lists_the_supported(names: object) -> None:
    with pytest.raises(
        ModelLoadError,
        match=r"architectures: expected one of FalconForCausalLM, .*LlamaForCausalLM, .*Qwen3ForCausalLM",
    ):
        family_for({"architectures": names})


def test_a_family_can_be_added_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    mine = replace(family_for(LLAMA), name="mine", architectures=("MineForCausalLM",))
    register_model(mine)
    assert family_for({"architectures": ["MineForCausalLM"]}) is mine
