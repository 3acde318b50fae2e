"""From what the caller calls a model to a folder with its files, and the small JSON files in it.

A model is ``"demo"``, a folder, or a hub id. No code in a folder is ever imported: there is no option for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ostinato.layers.errors import ConfigError, ModelLoadError
from ostinato.models.config_json import ConfigJson, read_json_object

DEMO_FOLDER = Path(__file__).parent / "demo"
_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt"]
_OLD_WEIGHTS = "pytorch_model*.bin"  # wanted where there is nothing else
_UNWANTED = ["*/*", "consolidated*"]  # sub-folders, and Mistral's second copy of the weights


def resolve_model(model: str | Path, revision: str | None = None) -> Path:
    """The folder of ``model``; a hub id goes through huggingface_hub's cache and downloads what is not there.

    ``ModelLoadError`` names the missing folder, or the command that downloads the hub id. ``revision`` (a branch, tag
    or commit) is for hub ids; with a folder it contradicts and is a ``ConfigError``.
    """
    if _is_hub_id(model):
        return _from_hub(str(model), revision)
    if revision is not None:
        raise ConfigError(f"revision: expected none, because {str(model)!r} is no hub id; got {revision!r}")
    return _existing(DEMO_FOLDER if model == "demo" else model)


def _is_hub_id(model: str | Path) -> bool:
    """``ORG/NAME``, unless it can only be meant as a path: ``./x``, ``/x``, ``~/x``, or ORG is a folder here."""
    if isinstance(model, Path) or model.startswith((".", "~", "/")) or model.count("/") != 1 or len(model) > 96:
        return False  # the hub's names have at most 96 characters
    return not Path(model).parent.exists()


def _existing(model: str | Path) -> Path:
    try:
        folder = Path(model).expanduser()
        if folder.is_dir() and model != "":
            return folder
        got = "a file" if folder.exists() else "nothing"
    except (OSError, RuntimeError) as error:  # a name too long, no such user
        got = str(error)
    raise ModelLoadError(f"model {str(model)!r}: expected a folder, a hub id (ORG/NAME) or 'demo'; found {got} there")


def _from_hub(repo_id: str, revision: str | None) -> Path:
    """The snapshot in the cache, completed from the hub where it can be reached."""
    from huggingface_hub import snapshot_download  # 0.2 s, for hub ids alone

    command = f"hf download {repo_id}" + (f" --revision {revision}" if revision else "")

    def download(wanted: list[str]) -> Path:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED))

    try:
        folder = download(_WANTED)
        if not any(folder.glob("*.safetensors")):
            folder = download([*_WANTED, _OLD_WEIGHTS])
    except Exception as error:  # whatever its network layer raises, the user needs the reason and the command
        raise ModelLoadError(f"model {repo_id!r}: {_reason(error)}. To download it: {command}") from error
    weights = [path for pattern in ("*.safetensors", _OLD_WEIGHTS) for path in folder.glob(pattern)]
    if not (folder / "config.json").is_file() or not weights:
        found = f"the local cache has it without config.json or safetensors files or {_OLD_WEIGHTS} ({folder})"
        raise ModelLoadError(f"model {repo_id!r}: {found}. To download it: {command}")
    return folder


def _reason(error: Exception) -> str:
    """What an error of huggingface_hub means here; the narrower class comes first."""
    from huggingface_hub import errors

    meanings: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "access has to be granted on its hub page, then: hf auth login"),
        (errors.RepositoryNotFoundError, "the hub has no such model, or it is private (then: hf auth login)"),
        (errors.RevisionNotFoundError, "the hub has no such revision of it"),
        (errors.LocalEntryNotFoundError, "it is not (or not wholly) in the local cache, and the hub cannot be reached"),
        (errors.HFValidationError, "neither a folder nor a possible hub id"),
    )
    for kind, meaning in meanings:
        if isinstance(error, kind):
            return meaning
    return f"{type(error).__name__}: {error}".splitlines()[0]


def read_config(folder: Path) -> dict[str, object]:
    """The parsed ``config.json``."""
    return read_json_object(folder / "config.json")


def read_generation_config(folder: Path) -> dict[str, object]:
    """The parsed ``generation_config.json``; empty when there is none."""
    path = folder / "generation_config.json"
    return read_json_object(path) if path.exists() else {}


def eos_token_ids(config: Mapping[str, object], generation_config: Mapping[str, object]) -> frozenset[int]:
    """Every id that ends a text: what both files say, together. Either may hold one id, a list, or nothing."""
    places = (config, "config.json"), (generation_config, "generation_config.json")
    return frozenset().union(*(ConfigJson(values, name).token_ids("eos_token_id") for values, name in places))
