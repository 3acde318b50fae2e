"""``pytorch_model.bin``: loads like safetensors, runs nothing, and every defect is one line."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from torch import nn

from ostinato.errors import ModelLoadError
from ostinato.models.checkpoint import resolve_model
from ostinato.models.weights import stream
from ostinato.models.weights.layouts import interleaved_halves
from ostinato.models.weights.rules import Rule
from ostinato.models.weights.source import BIN_FILE, BIN_INDEX_FILE
from toy_weights import Shapes, State, load, model_of, numbered, save, status

SHAPES: Shapes = {"a.weight": (10, 6), "a.bias": (10,), "b.weight": (4, 3)}
RULES = (Rule("a", "a"), Rule("b", "b"))


def tensors() -> State:
    return {name: numbered(*shape, start=100 * i) for i, (name, shape) in enumerate(SHAPES.items())}


def save_bin(folder: Path, state: object, *, legacy: bool = False) -> Path:
    torch.save(state, folder / BIN_FILE, _use_new_zipfile_serialization=not legacy)
    return folder


def save_shards(folder: Path, *, legacy: bool = False) -> Path:
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors().items()):
        file = f"pytorch_model-{i + 1:05d}-of-00003.bin"
        torch.save({name: tensor}, folder / file, _use_new_zipfile_serialization=not legacy)
        weight_map[name] = file
    (folder / BIN_INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def assert_loads(folder: Path, rules: tuple[Any, ...] = RULES, **options: Any) -> None:
    loaded, _ = load(folder, SHAPES, rules, **options)
    assert [name for name, tensor in tensors().items() if not torch.equal(loaded[name], tensor)] == []


def refusal(folder: Path, shapes: Shapes = SHAPES, rules: tuple[Any, ...] = RULES) -> str:
    """The message of the load, which must fail before a parameter is allocated."""
    model = model_of(shapes)
    with pytest.raises(ModelLoadError) as caught:
        load(folder, shapes, rules, model=model)
    assert all(parameter.is_meta for parameter in model.parameters())
    return str(caught.value)


# --------------------------------------------------------------------------------------------------- what loads


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_files_load(sharded: bool, legacy: bool, tmp_path: Path) -> None:
    assert_loads(save_shards(tmp_path, legacy=legacy) if sharded else save_bin(tmp_path, tensors(), legacy=legacy))


def test_a_state_dict_of_a_module_loads(tmp_path: Path) -> None:
    linear = nn.Linear(6, 10)
    assert isinstance(linear.state_dict(), OrderedDict)
    loaded, _ = load(save_bin(tmp_path, linear.state_dict()), {"a.weight": (10, 6), "a.bias": (10,)}, (Rule("x", "a"),),
                     renames=((r"^", "x."),))  # fmt: skip
    assert torch.equal(loaded["a.weight"], linear.weight.detach())


def test_parameters_that_want_gradients_load(tmp_path: Path) -> None:
    assert_loads(save_bin(tmp_path, {name: nn.Parameter(tensor) for name, tensor in tensors().items()}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype_is_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    assert_loads(save_bin(tmp_path, {name: tensor.to(dtype) for name, tensor in tensors().items()}))


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    save_bin(tmp_path, {"broken": numbered(1)})
    assert_loads(save(tmp_path, tensors()))


@pytest.mark.parametrize("buffer", [4, 20, 1 << 16])
@pytest.mark.parametrize("kind", ["transposed", "strided", "permuted", "expanded", "slice"])
def test_views_of_any_strides_arrive_whole(
    kind: str, buffer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = {
        "transposed": numbered(5, 7).T,
        "strided": numbered(20, 9)[::2, 1::3],
        "permuted": numbered(3, 4, 5).permute(2, 0, 1),
        "expanded": numbered(5).expand(4, 5),
        "slice": numbered(100)[7:47:2],
    }
    view = views[kind]
    monkeypatch.setattr(stream, "CPU_BUFFER_BYTES", buffer)
    loaded, _ = load(save_bin(tmp_path, {"x": view}), {"m.weight": tuple(view.shape)}, (Rule("x", "m.weight"),))
    assert torch.equal(loaded["m.weight"], view)


def test_tensors_that_share_storage_load(tmp_path: Path) -> None:
    whole = numbered(10, 6)
    shapes: Shapes = {"a.weight": (10, 6), "b.weight": (10, 6), "c.weight": (4, 6)}
    state = {"a.weight": whole, "b.weight": whole, "c.weight": whole[3:7]}
    loaded, _ = load(save_bin(tmp_path, state), shapes, tuple(Rule(name, name) for name in "abc"))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_layouts_apply_to_it(tmp_path: Path) -> None:
    weight = numbered(10, 6)
    stored = torch.stack([weight[:5], weight[5:]], dim=1).reshape(10, 6).T  # a view, written with its strides
    rule = Rule("x", "m", transposed=True, order=interleaved_halves)
    loaded, _ = load(save_bin(tmp_path, {"x.weight": stored}), {"m.weight": (10, 6)}, (rule,))
    assert torch.equal(loaded["m.weight"], weight)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_callers_ambient_state_does_not_matter(legacy: bool, tmp_path: Path) -> None:
    save_bin(tmp_path, tensors(), legacy=legacy)
    with torch.device("meta"), torch.inference_mode():
        loaded, _ = load(tmp_path, SHAPES, RULES)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors().items())


def test_no_file_stays_mapped(tmp_path: Path) -> None:
    assert_loads(save_shards(tmp_path))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's /proc/self/maps")
    assert str(tmp_path) not in maps.read_text()


@pytest.mark.alone
@pytest.mark.parametrize("legacy", [False, True])
def test_peak_memory_is_the_parameters_and_one_file(legacy: bool, tmp_path: Path) -> None:
    shapes: Shapes = {f"m{i}.weight": (1_000, 5_000) for i in range(5)}
    weight_map = {}
    for name, shape in shapes.items():
        state = {name: torch.ones(shape, dtype=torch.bfloat16)}
        torch.save(state, tmp_path / f"{name}.bin", _use_new_zipfile_serialization=not legacy)
        weight_map[name] = f"{name}.bin"
    (tmp_path / BIN_INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    del state
    (tmp_path / "warm").mkdir()
    assert_loads(save_bin(tmp_path / "warm", tensors(), legacy=legacy))
    model = model_of(shapes)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        pytest.skip("needs Linux's /proc/self/clear_refs")
    before = status("VmRSS")
    rules = tuple(Rule(f"m{i}", f"m{i}") for i in range(5))
    _, report = load(tmp_path, shapes, rules, model=model, dtype=torch.bfloat16)
    assert report.parameter_bytes == 50e6
    held = 2 if legacy else 1  # torch reads an old file's tensors into storages that it then copies
    assert status("VmHWM") - before < 1.05 * report.parameter_bytes + held * 10e6


# ----------------------------------------------------------------------------------------------- what is refused


class Touch:
    """A pickle of this makes a folder when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_executed(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    message = refusal(save_bin(tmp_path, tensors() | {"evil": Touch(canary)}, legacy=legacy))
    assert f"{BIN_FILE}: expected tensors alone, got a pickle that asks for posix.mkdir (refused; nothing" in message
    assert len(message.splitlines()) == 2
    assert not canary.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    assert "got a pickle that asks for torch.nn.modules.linear.Linear" in refusal(save_bin(tmp_path, nn.Linear(2, 2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / BIN_FILE)
    message = refusal(tmp_path)
    assert f"(1 found):\n  {BIN_FILE}: expected tensors alone, got a TorchScript archive (refused; nothing" in message


@pytest.mark.parametrize("state", [[numbered(2)], numbered(2), "text", 3])
def test_other_contents_than_a_dict_are_named(state: object, tmp_path: Path) -> None:
    kind = type(state).__name__
    assert f"(1 found):\n  {BIN_FILE}: expected tensors by name, got {kind}" in refusal(save_bin(tmp_path, state))


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (7, "int []"),
        ({"x": numbered(1)}, "dict []"),
        (None, "NoneType []"),
        (torch.ones(2, 2, dtype=torch.int8), "int8 [2, 2]"),
        (torch.ones(2, dtype=torch.complex64), "complex64 [2]"),
        (torch.eye(2).to_sparse(), "sparse_coo float32 on cpu [2, 2]"),
        (torch.empty(3, device="meta"), "strided float32 on meta [3]"),
    ],
    ids=["int", "dict", "none", "int8", "complex", "sparse", "meta"],
)
def test_what_is_no_plain_tensor_is_named(value: object, got: str, tmp_path: Path) -> None:
    message = refusal(save_bin(tmp_path, tensors() | {"other": value}))
    assert f"(1 found):\n  {BIN_FILE}: other: expected no such tensor, got {got}" in message


@pytest.mark.parametrize("value", [7, torch.ones(10, dtype=torch.int8), torch.ones(10).to_sparse()])
def test_a_parameter_from_no_plain_tensor_is_named(value: object, tmp_path: Path) -> None:
    message = refusal(save_bin(tmp_path, tensors() | {"a.bias": value}))
    assert f"(1 found):\n  {BIN_FILE}: a.bias: expected one of F32, F16, BF16, got " in message


def test_what_is_no_plain_tensor_can_be_ignored(tmp_path: Path) -> None:
    save_bin(tmp_path, tensors() | {"masked_bias": 7, "mask": torch.ones(2, dtype=torch.uint8)})
    assert_loads(tmp_path, ignored=("mask*",))


def test_a_key_that_is_no_name_is_named(tmp_path: Path) -> None:
    assert f"{BIN_FILE}: 3: expected a tensor's name" in refusal(save_bin(tmp_path, tensors() | {3: numbered(1)}))


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    message = refusal(save_bin(tmp_path, {"a.weight": numbered(6, 10), "b.weight": numbered(4, 3)}))
    assert f"{BIN_FILE}: a.weight: expected [10, 6], got [6, 10]" in message
    assert f"a.bias: expected [10] for a.bias, got no such tensor in {BIN_FILE}" in message


def test_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    save_bin(tmp_path, tensors() | {"a.bias": torch.full((10,), float("inf"))})
    with pytest.raises(ModelLoadError, match=rf"{BIN_FILE}: a.bias: expected finite values in float32"):
        load(tmp_path, SHAPES, RULES)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 20, 200, -200, -10, -1])
def test_a_truncated_file_is_one_line(kept: int, legacy: bool, tmp_path: Path) -> None:
    data = (save_bin(tmp_path, tensors(), legacy=legacy) / BIN_FILE).read_bytes()
    (tmp_path / BIN_FILE).write_bytes(data[:kept])
    message = refusal(tmp_path)
    assert f"(1 found):\n  {BIN_FILE}: expected " in message
    assert len(message.splitlines()) == 2
    assert "weights_only" not in message


@pytest.mark.parametrize("data", [b"garbage" * 100, b"PK\x03\x04" + b"\0" * 500, b"\x80\x02}q\0.", b"version https://"])
def test_what_is_no_file_of_torch_save_is_one_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / BIN_FILE).write_bytes(data)
    message = refusal(tmp_path)
    assert f"(1 found):\n  {BIN_FILE}: expected " in message
    assert len(message.splitlines()) == 2


def test_a_zip_that_claims_more_than_it_has_is_one_line(tmp_path: Path) -> None:
    """The pickle says 60 elements, the record has three."""
    stored = io.BytesIO()
    torch.save({"a.weight": numbered(10, 6)}, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(tmp_path / BIN_FILE, "w", zipfile.ZIP_STORED) as new:
        for record in old.infolist():
            data = old.read(record)
            new.writestr(record.filename, data[:12] if record.filename.endswith("data/0") else data)
    assert len(refusal(tmp_path).splitlines()) <= 5


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bytes_load_or_are_a_load_error(legacy: bool, tmp_path: Path) -> None:
    original = (save_bin(tmp_path, tensors(), legacy=legacy) / BIN_FILE).read_bytes()
    rng = random.Random(0)
    for _ in range(150):
        data = bytearray(original)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / BIN_FILE).write_bytes(data)
        try:
            load(tmp_path, SHAPES, RULES)
        except ModelLoadError as error:
            assert len(str(error).splitlines()) <= 12


def test_a_missing_shard_and_an_escaping_one_are_named(tmp_path: Path) -> None:
    save_shards(tmp_path)
    index = json.loads((tmp_path / BIN_INDEX_FILE).read_text())["weight_map"]
    (tmp_path / index["a.bias"]).unlink()
    index["b.weight"] = "../x.bin"
    (tmp_path / BIN_INDEX_FILE).write_text(json.dumps({"weight_map": index}))
    message = refusal(tmp_path)
    assert f"{index['a.bias']}: expected a file, got none" in message
    assert f"{BIN_INDEX_FILE}: expected file names in this folder, got '../x.bin'" in message


@pytest.mark.parametrize("now", [{"other": numbered(10)}, {"a.bias": numbered(9)}, {"a.bias": numbered(10).half()}])
def test_a_file_that_changes_while_loading_is_named(now: State, tmp_path: Path) -> None:
    """All headers are read before the values; here a shard is another when its values are wanted."""
    save_shards(tmp_path)

    def change(done: int, total: int) -> None:
        torch.save(now, tmp_path / "pytorch_model-00002-of-00003.bin")

    with pytest.raises(ModelLoadError, match=r"00002-of-00003.bin: a.bias: expected no change while loading"):
        load(tmp_path, SHAPES, RULES, progress=change)


# ------------------------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize("weights", ["model.safetensors", BIN_FILE])
def test_the_hub_is_asked_for_bin_files_only_without_safetensors(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ["config.json", weights, BIN_FILE, "training_args.bin", "optimizer.bin"]
    asked: list[list[str]] = []

    def stub(repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        patterns = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        asked.append(sorted(set(huggingface_hub.utils.filter_repo_objects(there, **patterns))))
        for name in asked[-1]:
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub)
    assert resolve_model("org/name") == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", weights])
    assert len(asked) == (1 if weights == "model.safetensors" else 2)


def test_a_cached_hub_id_with_bin_files_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", BIN_FILE):
        (snapshot / name).write_text("{}")
    assert resolve_model("org/name") == snapshot


@pytest.mark.gpu
def test_a_gpu_gets_the_same_values(tmp_path: Path) -> None:
    assert_loads(save_bin(tmp_path, tensors()), device="cuda")
