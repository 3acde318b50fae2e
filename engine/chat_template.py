"""A checkpoint's own chat template: messages in, the prompt's text out.

Knows where a checkpoint keeps its templates, and that they see plain data only; `template_sandbox` runs them, in the
caller's thread. Knows no tokenizer. jinja2 is imported when the first template is rendered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.layers.errors import ModelLoadError, ParamError

if TYPE_CHECKING:
    import jinja2

MAX_FILE_BYTES = 1 << 20

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The templates of one checkpoint (one, or a default and one for tools) and the special tokens they may name."""

    def __init__(self, sources: Mapping[str, tuple[str, Path]], special_tokens: Mapping[str, str]) -> None:
        self._sources = sources
        self._special_tokens = special_tokens
        self._compiled: dict[str, jinja2.Template] = {}

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """Read ``folder``'s template; None when it has none. Raises ModelLoadError for a file that cannot be read."""
        sources = dict(_template_sources(folder))
        return cls(sources, _special_tokens(folder)) if sources else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt's text. Raises ParamError for malformed messages and for whatever the template does."""
        name, path = self._choose(tools)
        variables: dict[str, Any] = {
            **self._special_tokens,
            "messages": _checked_messages(messages),
            "tools": None if tools is None else _plain(list(tools), "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        from ostinato.template_sandbox import render

        try:
            return render(self._template(name), variables)
        except Exception as error:  # whatever the checkpoint's code raises is this request's failure, nobody else's
            reason = str(error) or type(error).__name__
            raise ParamError(f"chat template {path} failed: {reason}") from error

    def _choose(self, tools: object) -> tuple[str, Path]:
        name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        if name not in self._sources:
            path = next(iter(self._sources.values()))[1]
            raise ParamError(f"{path} names no default chat template, only: {', '.join(sorted(self._sources))}")
        return name, self._sources[name][1]

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            from ostinato.template_sandbox import compile_template

            self._compiled[name] = compile_template(self._sources[name][0])
        return self._compiled[name]


def _template_sources(folder: Path) -> Iterator[tuple[str, tuple[str, Path]]]:
    """Yield (name, (source, file)); the places in transformers' order, the first that has a template."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    found = {name: (_read(path), path) for name, path in files.items() if path.is_file()}
    for path in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        found = found or {name: (source, path) for name, source in _named(read_json(path).get("chat_template"), path)}
    yield from found.items()


def _named(value: object, path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, source) from a string, a {name: source}, or a list of {"name", "template"}."""
    if isinstance(value, str):
        value = {"default": value}
    elif isinstance(value, list):
        value = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}
    for name, source in value.items() if isinstance(value, dict) else ():
        if not isinstance(name, str) or not isinstance(source, str):
            raise ModelLoadError(f"{path}: chat_template must hold names and texts; got {name!r}: {source!r:.80}")
        yield name, source


def _special_tokens(folder: Path) -> dict[str, str]:
    """The texts of bos_token and so on: as strings, or as objects with a ``content``."""
    merged = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
    values = {name: merged.get(name) for name in _SPECIAL_TOKENS}
    texts = {name: v.get("content") if isinstance(v, dict) else v for name, v in values.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; {} where there is no such file. Raises ModelLoadError for anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} must hold a JSON object; it holds a {type(value).__name__}")
    return value


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ModelLoadError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes: not a chat template")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} is not readable text: {error}") from error


def _checked_messages(messages: object) -> list[Any]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ParamError(f"messages must be a non-empty list of {{'role', 'content'}}; got {messages!r:.80}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ParamError(f"messages[{index}] must be a mapping with a 'role' string; got {message!r:.80}")
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of nothing but JSON types: a richer object could have methods the sandbox does not know."""
    if depth > 50:
        raise ParamError(f"{where} is nested more than 50 deep")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(k, where, depth + 1): _plain(v, where, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, depth + 1) for item in value]
    if isinstance(value, str):  # a subclass (an enum, say), back to its base
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise ParamError(f"{where} holds a {type(value).__name__}; only text, numbers, lists and mappings are allowed")
