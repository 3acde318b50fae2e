"""Six hundred ways of breaking a checkpoint: each loads right or is a ``ModelLoadError``, within seconds."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ostinato.errors import ModelLoadError
from ostinato.models.checkpoint import read_config
from ostinato.models.decoder import Decoder
from ostinato.models.registry import family_for
from ostinato.models.weights.load import load_weights
from ostinato.models.weights.source import INDEX_FILE
from tiny_checkpoints import build


def load(folder: Path) -> dict[str, torch.Tensor]:
    config = read_config(folder)
    family = family_for(config)
    spec = family.spec(config)
    with torch.device("meta"):
        decoder = Decoder(spec)
    load_weights(decoder, family, spec, folder, "cpu", torch.float32)
    return decoder.state_dict()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, dict[str, torch.Tensor]]]:
    folders = [tmp_path_factory.mktemp("single"), tmp_path_factory.mktemp("sharded")]
    small = {"num_hidden_layers": 2, "vocab_size": 32, "intermediate_size": 24}
    build("llama_bias", folders[0], **small)
    build("qwen3", folders[1], max_shard_size="12KB", **small)
    return [(folder, load(folder)) for folder in folders]


def some_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.glob("*.safetensors")))


def truncate(folder: Path, rng: random.Random) -> None:
    path = some_file(folder, rng)
    with path.open("r+b") as file:
        file.truncate(rng.randrange(path.stat().st_size))


def append(folder: Path, rng: random.Random) -> None:
    with some_file(folder, rng).open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 50)))


def flip_header(folder: Path, rng: random.Random) -> None:
    path = some_file(folder, rng)
    data = bytearray(path.read_bytes())
    length = 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(length) if rng.random() < 0.9 else rng.randrange(8)] = rng.randrange(256)
    path.write_bytes(data)


def change_tensor(folder: Path, rng: random.Random) -> None:
    path = some_file(folder, rng)
    state = load_file(path)
    name = rng.choice(sorted(state))
    tensor = state.pop(name)
    wrong = [tensor.flatten()[:-1], tensor.unsqueeze(0), tensor.repeat(2, *[1] * (tensor.dim() - 1)), tensor[:0]]
    wrong += [tensor.to(dtype) for dtype in (torch.int8, torch.float64, torch.bool, torch.float8_e4m3fn)]
    action = rng.randrange(3)
    if action == 1:
        state[name] = rng.choice(wrong).clone()
    elif action == 2:
        state[rng.choice([name + "x", name.replace("1", "7"), "x." + name, name.upper()])] = tensor
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def change_index(folder: Path, rng: random.Random) -> None:
    path = folder / INDEX_FILE
    if not path.exists():
        return
    weight_map = json.loads(path.read_text())["weight_map"]
    name, other = rng.sample(sorted(weight_map), 2)
    file = weight_map[name]
    escapes = [f"../{file}", f"/etc/{file}", f"./{file}", f"{file}/..", "", ".", 3, None, file + "\0", "config.json"]
    weight_map[name] = rng.choice([*escapes, weight_map[other]])
    if rng.random() < 0.3:
        weight_map[rng.choice(["x", other])] = weight_map.pop(name)
    path.write_text(json.dumps({"weight_map": weight_map}))


def flip_json(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.glob("*.json")))
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 3)):
        data[rng.randrange(len(data))] = rng.choice([rng.randrange(256), *b'0123456789"{}[],-.'])
    path.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])


def move_files(folder: Path, rng: random.Random) -> None:
    path, other = some_file(folder, rng), some_file(folder, rng)
    action = rng.randrange(4)
    if action == 0:
        path.unlink()
    elif action == 1:
        path.unlink()
        path.mkdir()
    elif action == 2:
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        path.write_bytes(rng.choice([b"", b"\0" * 8, b"\2" + b"\0" * 7 + b"{}", b"\xff" * 40, b"GGUF" + b"\0" * 60]))


CASES = 90
MUTATIONS = [truncate, append, flip_header, change_tensor, change_index, flip_json, move_files]


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_a_mutated_checkpoint_loads_right_or_is_refused(
    mutate: Callable[[Path, random.Random], None],
    originals: list[tuple[Path, dict[str, torch.Tensor]]],
    tmp_path: Path,
) -> None:
    rng = random.Random(mutate.__name__)
    refused = 0
    for _ in range(CASES):
        original, expected = rng.choice(originals)
        folder = Path(shutil.copytree(original, tmp_path / "copy"))
        mutate(folder, rng)
        began = time.perf_counter()
        try:
            loaded = load(folder)
            assert all(torch.equal(loaded[name], expected[name]) for name in expected)
        except ModelLoadError:
            refused += 1
        assert time.perf_counter() - began < 5
        shutil.rmtree(folder)
    assert refused > CASES / 5
