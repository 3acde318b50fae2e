"""Weights: equal to transformers' own after fusing, streamed within a memory bound, and every defect named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ostinato.errors import ModelLoadError
from ostinato.models.checkpoint import read_config
from ostinato.models.decoder import Decoder, count_parameters
from ostinato.models.families.family import Family
from ostinato.models.registry import family_for
from ostinato.models.weights.load import LoadReport, load_weights
from ostinato.models.weights.source import INDEX_FILE, SINGLE_FILE
from tiny_checkpoints import VARIANTS, build

State = dict[str, Tensor]
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def meta_decoder(folder: Path) -> Decoder:
    config = read_config(folder)
    with torch.device("meta"):
        return Decoder(family_for(config).spec(config))


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Decoder, LoadReport]:
    config = read_config(folder)
    family, decoder = family_for(config), meta_decoder(folder)
    return decoder, load_weights(decoder, family, decoder.spec, folder, "cpu", dtype, **options)


def fused(state: State, num_layers: int) -> State:
    """transformers' state dict under our names, concatenated here: written apart from the rules under test."""
    ours: dict[str, list[str]] = {"embed": ["model.embed_tokens"], "norm": ["model.norm"], "lm_head": ["lm_head"]}
    for i in range(num_layers):
        theirs, mine = f"model.layers.{i}", f"layers.{i}"
        ours[f"{mine}.pre_attn_norm"] = [f"{theirs}.input_layernorm"]
        ours[f"{mine}.pre_ffn_norm"] = [f"{theirs}.post_attention_layernorm"]
        ours[f"{mine}.attention.qkv"] = [f"{theirs}.self_attn.{part}_proj" for part in "qkv"]
        ours[f"{mine}.ffn.gate_up"] = [f"{theirs}.mlp.{part}_proj" for part in ("gate", "up")]
        ours[f"{mine}.ffn.down"] = [f"{theirs}.mlp.down_proj"]
        for part, name in {"o": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm"}.items():
            ours[f"{mine}.attention.{part}"] = [f"{theirs}.self_attn.{name}"]
    return {
        f"{module}.{kind}": torch.cat([state[f"{part}.{kind}"] for part in parts])
        for module, parts in ours.items()
        for kind in ("weight", "bias")
        if f"{parts[0]}.{kind}" in state
    }


def assert_same(decoder: Decoder, expected: State) -> None:
    loaded = decoder.state_dict()
    assert loaded.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(loaded[name], expected[name])] == []


def rewrite(folder: Path, change: Callable[[State], Any], file: str = SINGLE_FILE) -> None:
    """Change the tensors of one file in place."""
    state = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    change(state)
    save_file(state, folder / file)


# ---------------------------------------------------------------------------------------------------- what loads


@pytest.mark.parametrize("max_shard_size", ["1GB", "30KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_equal_those_of_transformers_after_fusing(variant: str, max_shard_size: str, tmp_path: Path) -> None:
    model = build(variant, tmp_path, max_shard_size=max_shard_size)
    decoder, report = load(tmp_path)
    assert_same(decoder, fused(model.state_dict(), len(decoder.spec.layers)))
    assert report.num_parameters == sum(p.numel() for p in model.parameters()) == count_parameters(decoder.spec)
    assert report.parameter_bytes == 4 * report.num_parameters
    assert report.num_files == len(list(tmp_path.glob("*.safetensors")))
    assert (report.num_files > 3) == (max_shard_size == "30KB")
    assert not any(p.requires_grad or p.is_meta for p in decoder.parameters())


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_every_stored_dtype_is_cast_to_the_one_asked_for(stored: str, wanted: torch.dtype, tmp_path: Path) -> None:
    model = build("qwen3_bias", tmp_path, dtype=stored)
    assert family_for(read_config(tmp_path)).spec(read_config(tmp_path)).dtype == stored
    decoder, _ = load(tmp_path, wanted)
    expected = fused(model.state_dict(), len(decoder.spec.layers))
    assert_same(decoder, {name: tensor.to(wanted) for name, tensor in expected.items()})


def test_a_tensor_larger_than_the_buffer_arrives_whole(tmp_path: Path) -> None:
    model = build("llama2_mha", tmp_path, vocab_size=1031)
    decoder, _ = load(tmp_path)
    assert model.lm_head.weight.nbytes > 4 * 65536
    assert_same(decoder, fused(model.state_dict(), len(decoder.spec.layers)))


def test_a_tied_head_is_the_same_parameter(tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    decoder, _ = load(tmp_path)
    assert decoder.lm_head.weight is decoder.embed.weight


@pytest.mark.parametrize("which", ["both", "head only"])
def test_a_tied_checkpoint_may_hold_its_head(which: str, tmp_path: Path) -> None:
    model = build("llama_tied", tmp_path)

    def add_head(state: State) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        if which == "head only":
            del state["model.embed_tokens.weight"]

    rewrite(tmp_path, add_head)
    decoder, _ = load(tmp_path)
    assert decoder.lm_head.weight is decoder.embed.weight
    assert torch.equal(decoder.embed.weight, model.model.embed_tokens.weight)


def test_known_buffers_are_ignored_and_reported(tmp_path: Path) -> None:
    build("llama2_mha", tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda state: state.update({name: torch.ones(8)}))
    assert load(tmp_path)[1].ignored == (name,)


def test_progress_counts_up_to_all_bytes(tmp_path: Path) -> None:
    build("llama3_gqa", tmp_path, max_shard_size="40KB")
    calls: list[tuple[int, int]] = []
    _, report = load(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (report.parameter_bytes, report.parameter_bytes)


def test_the_callers_ambient_state_does_not_matter(tmp_path: Path) -> None:
    model = build("qwen3_untied", tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu"):
            decoder, _ = load(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not any(p.is_inference() for p in decoder.parameters())
    assert_same(decoder, fused(model.state_dict(), len(decoder.spec.layers)))


def status(key: str) -> int:
    """A figure of this process in bytes, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


@pytest.mark.alone
def test_peak_memory_is_the_parameters_and_a_small_buffer(tmp_path: Path) -> None:
    build("llama2_mha", tmp_path, vocab_size=160_000, dtype="bfloat16")
    build("llama2_mha", tmp_path / "warm")
    load(tmp_path / "warm", torch.bfloat16)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        pytest.skip("needs Linux's /proc/self/clear_refs")
    before = status("VmRSS")
    _, report = load(tmp_path, torch.bfloat16)
    assert report.parameter_bytes > 40e6
    assert status("VmHWM") - before < 1.05 * report.parameter_bytes


@pytest.mark.gpu
def test_a_gpu_gets_the_same_values(tmp_path: Path) -> None:
    model = build("qwen3", tmp_path, dtype="bfloat16", max_shard_size="40KB")
    decoder, config = meta_decoder(tmp_path), read_config(tmp_path)
    load_weights(decoder, family_for(config), decoder.spec, tmp_path, "cuda", torch.bfloat16)
    assert all(parameter.is_cuda for parameter in decoder.parameters())
    assert decoder.lm_head.weight is decoder.embed.weight
    assert_same(decoder.cpu(), fused(model.state_dict(), len(decoder.spec.layers)))


# ------------------------------------------------------------------------------------------------- what does not


def refusal(folder: Path) -> str:
    """The message of the load, which must fail before a parameter is allocated."""
    decoder = meta_decoder(folder)
    family: Family = family_for(read_config(folder))
    with pytest.raises(ModelLoadError) as caught:
        load_weights(decoder, family, decoder.spec, folder, "cpu", torch.float32)
    assert all(parameter.is_meta for parameter in decoder.parameters())
    return str(caught.value)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    build("llama3_gqa", tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    build("llama3_gqa", tmp_path, max_shard_size="40KB")
    return tmp_path


def shard_of(folder: Path, name: str) -> str:
    shard: str = json.loads((folder / INDEX_FILE).read_text())["weight_map"][name]
    return shard


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    change(index["weight_map"])
    (folder / INDEX_FILE).write_text(json.dumps(index))


def test_a_missing_tensor_is_named_with_its_shape(single: Path) -> None:
    rewrite(single, lambda state: state.pop(K_PROJ))
    place = "layers.1.attention.qkv.weight[64:96]"
    assert f"{K_PROJ}: expected [32, 48] for {place}, got no such tensor in {SINGLE_FILE}" in refusal(single)


def test_a_missing_head_of_an_untied_model_is_an_error(single: Path) -> None:
    rewrite(single, lambda state: state.pop("lm_head.weight"))
    assert "lm_head.weight: expected [112, 48] for lm_head.weight, got no such tensor" in refusal(single)


def test_an_unknown_tensor_is_named(single: Path) -> None:
    rewrite(single, lambda state: state.update({"model.layers.9.mlp.gate_proj.weight": torch.ones(2, 3)}))
    name = "model.layers.9.mlp.gate_proj.weight"
    assert f"{SINGLE_FILE}: {name}: expected no such tensor, got F32 [2, 3]" in refusal(single)


def test_a_bias_that_config_json_does_not_mention_is_an_error(single: Path) -> None:
    rewrite(single, lambda state: state.update({"model.layers.0.mlp.up_proj.bias": torch.ones(80)}))
    assert "model.layers.0.mlp.up_proj.bias: expected no such tensor, got F32 [80]" in refusal(single)


@pytest.mark.parametrize(
    ("tensor", "got"),
    [(torch.ones(48, 32), "[48, 32]"), (torch.ones(32 * 48), "[1536]"), (torch.ones(32, 48, dtype=torch.int8), "I8")],
)
def test_a_misfit_is_named_with_expected_and_got(tensor: Tensor, got: str, single: Path) -> None:
    rewrite(single, lambda state: state.update({K_PROJ: tensor}))
    expected = "one of F32, F16, BF16" if got == "I8" else "[32, 48]"
    assert f"{SINGLE_FILE}: {K_PROJ}: expected {expected}, got {got}" in refusal(single)


def test_a_truncated_shard_is_found_before_anything_is_allocated(sharded: Path) -> None:
    path = sharded / shard_of(sharded, K_PROJ)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 5)
    message = refusal(sharded)
    assert f"{path.name}: " in message
    assert f"expected its bytes to end at {size:,}, got a file of {size - 5:,} (truncated)" in message


def edit_header(path: Path, change: Callable[[str], str]) -> None:
    """Change the JSON text of a header; the new text must not be longer."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = change(data[8 : 8 + length].decode()).encode()
    path.write_bytes(data[:8] + header.ljust(length) + data[8 + length :])


def test_tensors_that_share_bytes_are_found(single: Path) -> None:
    def overlap(text: str) -> str:
        header = json.loads(text)
        header[K_PROJ]["data_offsets"] = header[K_PROJ.replace("k_proj", "v_proj")]["data_offsets"]
        return json.dumps(header, separators=(",", ":"))

    edit_header(single / SINGLE_FILE, overlap)
    assert f"{SINGLE_FILE}: model.layers.1.self_attn.o_proj.weight: expected its bytes to begin at" in refusal(single)


def test_a_name_that_comes_twice_in_one_file_is_found(single: Path) -> None:
    edit_header(single / SINGLE_FILE, lambda text: text.replace(K_PROJ.replace("k_proj", "v_proj"), K_PROJ))
    assert f"{SINGLE_FILE}: header: expected safetensors JSON, got: {K_PROJ} twice" in refusal(single)


@pytest.mark.parametrize("change", ['"F32"', '"shape"', '"data_offsets"'])
def test_a_header_entry_that_lacks_something_is_named(change: str, single: Path) -> None:
    edit_header(single / SINGLE_FILE, lambda text: text.replace(change, "1" if change == '"F32"' else '"x"', 1))
    assert "lm_head.weight: expected dtype, shape and data_offsets, got {" in refusal(single)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = shard_of(sharded, K_PROJ)
    (sharded / shard).unlink()
    assert f"(1 found):\n  {shard}: expected a file, got none" in refusal(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    shard = shard_of(sharded, K_PROJ)
    rewrite(sharded, lambda state: state.pop(K_PROJ), shard)
    assert f"{shard}: {K_PROJ}: expected here by the index, got no such tensor" in refusal(sharded)


def test_a_tensor_in_another_shard_than_the_index_says_is_named(sharded: Path) -> None:
    shard, other = shard_of(sharded, K_PROJ), shard_of(sharded, "lm_head.weight")
    assert shard != other
    edit_index(sharded, lambda names: names.update({K_PROJ: other}))
    assert f"{other}: {K_PROJ}: expected here by the index, got it in {shard}" in refusal(sharded)


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    shard, other = sorted([shard_of(sharded, K_PROJ), shard_of(sharded, "lm_head.weight")])
    name = K_PROJ if shard_of(sharded, K_PROJ) == shard else "lm_head.weight"
    rewrite(sharded, lambda state: state.update({name: torch.ones(1)}), other)
    assert f"{other}: {name}: expected in one file, got it in {shard} too" in refusal(sharded)


@pytest.mark.parametrize("path", ["../{}", "/etc/{}", "sub/{}", "..", "", "."])
def test_the_index_cannot_leave_the_folder(path: str, sharded: Path) -> None:
    shard = shard_of(sharded, K_PROJ)
    shutil.copy(sharded / shard, sharded.parent / shard)
    escaped = path.format(shard)
    edit_index(sharded, lambda names: names.update({n: escaped for n, file in names.items() if file == shard}))
    assert f"{INDEX_FILE}: expected file names in this folder, got {escaped!r}" in refusal(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, "x"])
def test_a_malformed_index_is_named(weight_map: object, sharded: Path) -> None:
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map: expected tensor names and file names, got" in refusal(sharded)


def test_all_problems_come_together_ten_of_them_in_full(single: Path) -> None:
    def break_much(state: State) -> None:
        for name in [name for name in state if "norm" in name]:
            state[name] = torch.ones(3)
        for i in range(6):
            state[f"extra.{i}"] = torch.ones(1)

    rewrite(single, break_much)
    message = refusal(single)
    assert message.startswith(f"{single}: the weights do not fit (13 found):\n")
    assert message.endswith("\n  ... and 3 more")
    assert len(message.splitlines()) == 12


def test_a_folder_without_weights_says_what_it_holds(single: Path) -> None:
    (single / SINGLE_FILE).rename(single / "model.gguf")
    assert f"expected {SINGLE_FILE} or {INDEX_FILE} (or pytorch_model.bin), found model.gguf" in refusal(single)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(value: float, single: Path) -> None:
    rewrite(single, lambda state: state[K_PROJ].view(-1)[-1].fill_(value))
    with pytest.raises(ModelLoadError, match=rf"{SINGLE_FILE}: {K_PROJ}: expected finite values in float32, got NaN"):
        load(single)


def test_a_value_too_large_for_the_asked_dtype_is_named(single: Path) -> None:
    rewrite(single, lambda state: state[K_PROJ].view(-1)[7].fill_(1e5))
    load(single, torch.bfloat16)
    with pytest.raises(ModelLoadError, match=f"{K_PROJ}: expected finite values in float16, got NaN or infinity"):
        load(single, torch.float16)


def test_many_large_values_are_no_infinity(single: Path) -> None:
    rewrite(single, lambda state: state["lm_head.weight"].fill_(6e4))
    assert float(load(single, torch.float16)[0].lm_head.weight.max()) == 6e4


def test_a_head_that_contradicts_its_tie_is_an_error(tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    rewrite(tmp_path, lambda state: state.update({"lm_head.weight": torch.ones(112, 48)}))
    with pytest.raises(ModelLoadError, match=r"lm_head.weight: expected the values of embed.weight, to which"):
        load(tmp_path)


def test_memory_that_is_not_there_is_a_load_error(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Tensor:
        raise RuntimeError("not enough memory")

    decoder = meta_decoder(single)
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(ModelLoadError, match=r"cpu: no 21,504 bytes for a parameter \[112, 48\]: not enough memory"):
        load_weights(decoder, family_for(read_config(single)), decoder.spec, single, "cpu", torch.float32)


def test_a_parameter_without_a_rule_is_a_mistake_of_the_family(single: Path) -> None:
    family, decoder = family_for(read_config(single)), meta_decoder(single)
    short = replace(family, rules=tuple(rule for rule in family.rules if not rule.source.endswith("k_proj")))
    with pytest.raises(ModelLoadError, match=r"llama: layers.0.attention.qkv.weight: expected rules for 6,144 elem"):
        load_weights(decoder, short, decoder.spec, single, "cpu", torch.float32)
