"""What a checkpoint's tokenizer is, and whether its ids are the model's. Knows no weights.

Opens ``tokenizer.json`` alone: the older kinds of files would need transformers to convert them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from ostinato.chat_template import ChatTemplate, read_json
from ostinato.layers.errors import ModelLoadError
from ostinato.models.config_json import ConfigJson
from ostinato.tokenizer import Tokenizer

_SPECIAL = ("bos", "eos", "pad")
_OLDER_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True)
class TokenizerReport:
    """``kind`` None: no tokenizer was opened. Special tokens and ids by name; None where nothing says.

    ``eos_ids`` are those of each file that has some, with the text of each id; ``chat_template`` None: unreadable.
    """

    kind: str | None
    vocab_size: int | None
    largest_id: int | None
    special_tokens: dict[str, tuple[str, int | None]]
    config_ids: dict[str, object]
    eos_ids: dict[str, dict[int, str | None]]
    chat_template: bool | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def examine_tokenizer(
    folder: Path, config: Mapping[str, object], generation: Mapping[str, object], vocab_size: int | None
) -> TokenizerReport:
    """Set the tokenizer of ``folder`` against both files and the model's ``vocab_size`` (None: not known)."""
    problems: list[str] = []
    notes: list[str] = []
    core = _open(folder, problems, notes)
    largest = max(core.get_vocab(with_added_tokens=True).values(), default=None) if core else None
    if largest is not None and vocab_size is not None and largest >= vocab_size:
        problems.append(
            f"tokenizer.json: expected ids below the model's vocabulary of {vocab_size:,}, got ids up to {largest:,}"
        )
    eos_ids = _eos_ids(config, generation, core, vocab_size, problems)
    special = _special_tokens(folder, core, problems, notes)
    ends = {token_id for ids in eos_ids.values() for token_id in ids}
    if not ends:
        notes.append("neither config.json nor generation_config.json says what ends a text")
    elif (eos := special.get("eos")) is not None and eos[1] is not None and eos[1] not in ends:
        notes.append(f"the tokenizer's eos_token {eos[0]!r} has the id {eos[1]}, which ends no text here")
    return TokenizerReport(
        kind=_kind(core) if core else None,
        vocab_size=core.get_vocab_size(with_added_tokens=True) if core else None,
        largest_id=largest,
        special_tokens=special,
        config_ids={name: value for name in _SPECIAL if (value := config.get(f"{name}_token_id")) is not None},
        eos_ids=eos_ids,
        chat_template=_has_chat_template(folder, problems),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _open(folder: Path, problems: list[str], notes: list[str]) -> tokenizers.Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        older = [name for name in _OLDER_FILES if (folder / name).is_file()]
        converted = f"no tokenizer.json to look at: transformers converts {', '.join(older)} at every start"
        notes.append(converted if older else "no tokenizer: prompts must be token ids")
        return None
    try:
        Tokenizer.load(folder)
    except ModelLoadError as error:
        if not str(error).startswith(str(path)):
            return tokenizers.Tokenizer.from_file(str(path))  # its chat template is at fault, which is looked at later
        problems.append(str(error))
        return None
    return tokenizers.Tokenizer.from_file(str(path))


def _kind(core: tokenizers.Tokenizer) -> str:
    """The model and what splits or joins its texts, by the library's names: "BPE, ByteLevel"."""
    parts = [core.model, core.pre_tokenizer, core.decoder]
    return ", ".join(dict.fromkeys(type(part).__name__ for part in parts if part is not None))


def _eos_ids(
    config: Mapping[str, object],
    generation: Mapping[str, object],
    core: tokenizers.Tokenizer | None,
    vocab_size: int | None,
    problems: list[str],
) -> dict[str, dict[int, str | None]]:
    found: dict[str, dict[int, str | None]] = {}
    for values, place in ((config, "config.json"), (generation, "generation_config.json")):
        try:
            ids = sorted(ConfigJson(values, place).token_ids("eos_token_id"))
        except ModelLoadError as error:
            problems.append(str(error))
            continue
        if ids:
            found[place] = {token_id: core.id_to_token(token_id) if core else None for token_id in ids}
        for token_id in ids:
            if vocab_size is not None and token_id >= vocab_size:
                problems.append(f"{place}: eos_token_id: expected ids below {vocab_size:,}, got {token_id:,}")
            elif core is not None and core.id_to_token(token_id) is None:
                problems.append(f"{place}: eos_token_id: expected a token of tokenizer.json, got {token_id:,}")
    return found


def _special_tokens(
    folder: Path, core: tokenizers.Tokenizer | None, problems: list[str], notes: list[str]
) -> dict[str, tuple[str, int | None]]:
    """``bos_token`` and so on with their ids, from the tokenizer's own two files."""
    merged: dict[str, object] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            merged |= read_json(folder / file)
        except ModelLoadError as error:
            problems.append(str(error))
    special = {}
    for name in _SPECIAL:
        value = merged.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            special[name] = text, core.token_to_id(text) if core else None
            if core is not None and special[name][1] is None:
                notes.append(f"{name}_token {text!r} of tokenizer_config.json is no token of tokenizer.json")
    return special


def _has_chat_template(folder: Path, problems: list[str]) -> bool | None:
    try:
        return ChatTemplate.load(folder) is not None
    except ModelLoadError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None
