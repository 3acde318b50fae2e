"""Finding a checkpoint (folder, hub id, demo) and reading its JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from ostinato.errors import ConfigError, ModelLoadError
from ostinato.models import checkpoint
from ostinato.models.checkpoint import eos_token_ids, read_config, read_generation_config, resolve_model
from ostinato.models.decoder import Decoder
from ostinato.models.registry import family_for
from ostinato.models.weights.load import load_weights
from tiny_checkpoints import build

# ------------------------------------------------------------------------------------------------------- finding


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_demo_is_the_shipped_folder() -> None:
    assert resolve_model("demo") == Path(checkpoint.__file__).parent / "demo"


@pytest.mark.parametrize("model", ["./x", "/nowhere/x", "~/x/y", "a/b/c", "nowhere", "", "x" * 5000 + "/x", "~none/x"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ModelLoadError, match=r"expected a folder, a hub id .* or 'demo'; found"):
        resolve_model(model)
    with pytest.raises(ModelLoadError, match="expected a folder"):
        resolve_model(Path("org/name"))


def test_an_existing_parent_makes_it_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match=r"'org/name': expected a folder, .*; found nothing there"):
        resolve_model("org/name")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("x")
    with pytest.raises(ModelLoadError, match="found a file there"):
        resolve_model(tmp_path / "model.gguf")


@pytest.mark.parametrize("model", ["demo", "."])
def test_a_revision_is_for_hub_ids(model: str) -> None:
    with pytest.raises(ConfigError, match=f"revision: expected none, because '{model}' is no hub id; got 'v1'"):
        resolve_model(model, revision="v1")


def test_a_hub_id_asks_for_what_is_needed_and_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    asked: dict[str, Any] = {}

    def stub(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub)
    assert resolve_model("org/name", revision="v1") == tmp_path
    assert (asked["repo_id"], asked["revision"]) == ("org/name", "v1")
    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja", "merges.txt"]
    others = ["modeling_x.py", "pytorch_model.bin", "original/params.json", "consolidated.safetensors"]
    patterns = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
    assert list(huggingface_hub.utils.filter_repo_objects(files + others, **patterns)) == files


RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.invalid"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.LocalEntryNotFoundError("no cache"), "not in the local cache|not wholly"),
        (errors.IncompleteSnapshotError("half of it", snapshot_path="x"), "not wholly"),
        (errors.GatedRepoError("gated", response=RESPONSE), "access has to be granted"),
        (errors.RepositoryNotFoundError("absent", response=RESPONSE), "no such model"),
        (errors.RevisionNotFoundError("absent", response=RESPONSE), "no such revision"),
        (OSError("disk full\nsecond line"), r"OSError: disk full\. To"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_every_hub_error_gives_the_reason_and_the_command(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stub(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        resolve_model("org/name", revision="v1")
    assert str(caught.value).endswith("To download it: hf download org/name --revision v1")
    with pytest.raises(ModelLoadError, match=r"hf download org/name$"):
        resolve_model("org/name")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline: the real client, no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cache_snapshot(cache: Path, files: list[str]) -> Path:
    """The layout of huggingface_hub's cache: refs name a commit, the snapshot links to blobs."""
    repo = cache / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "blobs").mkdir()
    for i, name in enumerate(files):
        (repo / "blobs" / str(i)).write_text("{}")
        (snapshot / name).symlink_to(repo / "blobs" / str(i))
    return snapshot


def test_a_cached_hub_id_is_found_offline(hub_cache: Path) -> None:
    snapshot = cache_snapshot(hub_cache, ["config.json", "model.safetensors"])
    assert resolve_model("org/name") == snapshot
    assert resolve_model("org/name", revision="0" * 40) == snapshot
    assert read_config(resolve_model("org/name")) == {}
    with pytest.raises(ModelLoadError, match=r"hf download org/name --revision v2$"):
        resolve_model("org/name", revision="v2")


def test_a_cache_without_weights_is_not_enough(hub_cache: Path) -> None:
    cache_snapshot(hub_cache, ["config.json"])
    with pytest.raises(ModelLoadError, match=r"without config.json or safetensors files .* hf download org/name$"):
        resolve_model("org/name")


@pytest.mark.parametrize(("model", "reason"), [("org/absent", "cannot be reached"), ("org/a--b", "possible hub id")])
def test_an_uncached_hub_id_offline_names_the_command(model: str, reason: str, hub_cache: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"'{model}': .*{reason}.* To download it: hf download {model}$"):
        resolve_model(model)


# ------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe{}", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[1]", "expected a JSON object, got list"),
        (b"", "not readable as JSON"),
    ],
)
def test_a_broken_config_is_named(content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=f"config.json: {reason}"):
        read_config(tmp_path)


def test_a_generation_config_may_be_absent_but_not_broken(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert read_generation_config(tmp_path) == {"temperature": 0.6}
    (tmp_path / "generation_config.json").write_text("null")
    with pytest.raises(ModelLoadError, match=r"generation_config.json: expected a JSON object"):
        read_generation_config(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        (None, None, set()),
        (2, None, {2}),
        (None, 0, {0}),
        ([1, 2], 3, {1, 2, 3}),
        ([5], [5, 6], {5, 6}),
        ([], None, set()),
    ],
)
def test_eos_ids_are_the_union_of_both_files(config: object, generation: object, ids: set[int]) -> None:
    assert eos_token_ids({"eos_token_id": config}, {"eos_token_id": generation}) == ids
    assert eos_token_ids({}, {}) == set()


@pytest.mark.parametrize("bad", [-1, True, "2", 1.0, [1, None], [[1]], {}, 1 << 40])
def test_a_malformed_eos_id_names_its_file(bad: object) -> None:
    with pytest.raises(ModelLoadError, match=r"generation_config.json: eos_token_id: expected a token id or a list"):
        eos_token_ids({"eos_token_id": 2}, {"eos_token_id": bad})


def test_code_in_a_checkpoint_is_never_imported(tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    for name in ("modeling_canary.py", "configuration_canary.py", "__init__.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    config = read_config(tmp_path) | {"auto_map": {"AutoModelForCausalLM": "modeling_canary.Canary"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = family_for(config).spec(config)
    with torch.device("meta"):
        decoder = Decoder(spec)
    load_weights(decoder, family_for(config), spec, resolve_model(tmp_path), "cpu", torch.float32)
    assert not any("canary" in name for name in sys.modules)
