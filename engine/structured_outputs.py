"""What the text of a request has to be: JSON of a schema, a match of a regular expression or a grammar, one of several.

Owns the meaning and the limits of ``StructuredOutputsParams``; one that exists is of a size that is safe to compile.
Whether it is a schema or a grammar that can be followed, the compiler says (``grammar_compiler``). Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ostinato.layers.errors import ParamError
from ostinato.param_checks import show

MAX_SCHEMA_CHARACTERS = 128 * 1024
MAX_GRAMMAR_CHARACTERS = 64 * 1024
MAX_REGEX_CHARACTERS = 16 * 1024
MAX_MEETING_PATTERNS = 16
"""Expressions that one string has to match: their intersection grows as a power of two."""
MAX_CHOICES = 1_000
MAX_CHOICE_CHARACTERS = 1_000

Kind = Literal["json", "regex", "choice", "grammar"]
_KINDS: tuple[Kind, ...] = ("json", "regex", "choice", "grammar")


@dataclass(frozen=True, init=False)
class StructuredOutputsParams:
    """The form of a request's text; keyword arguments only, exactly one of the first five.

    json: a JSON schema (draft 2020-12), as a mapping, a bool or a string of JSON; up to 128 Ki characters of JSON.
    json_object: True for any JSON object.
    regex: a regular expression in Rust's syntax, which the whole text matches; up to 16 Ki characters.
    choice: up to 1,000 strings, one of which the text is.
    grammar: a Lark grammar, as llguidance takes it; up to 64 Ki characters.
    disable_any_whitespace: JSON without whitespace between its tokens; otherwise there are up to 32 characters of it.

    Raises ParamError, naming the parameter and its value.
    """

    kind: Kind
    source: str
    """The schema as JSON, the expression, the choices as a JSON array, or the grammar."""
    disable_any_whitespace: bool

    def __init__(
        self,
        *,
        json: Mapping[str, Any] | bool | str | None = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        grammar: str | None = None,
        json_object: bool = False,
        disable_any_whitespace: bool = False,
    ) -> None:
        for name, flag in (("json_object", json_object), ("disable_any_whitespace", disable_any_whitespace)):
            if not isinstance(flag, bool):
                raise ParamError(f"{name} must be True or False, got {show(flag)}")
        given = dict(zip(_KINDS, (json, regex, choice, grammar), strict=True))
        forms = [name for name in _KINDS if given[name] is not None] + ["json_object"] * json_object
        if len(forms) != 1:
            said = f"got {' and '.join(forms)}" if forms else "got none of them"
            raise ParamError(f"structured outputs take exactly one of {', '.join(_KINDS)} and json_object; {said}")
        kind: Kind = "json" if json_object else next(name for name in _KINDS if name in forms)
        if disable_any_whitespace and kind != "json":
            raise ParamError(f"disable_any_whitespace is about JSON, and the text is a {kind}")
        source = '{"type": "object"}' if json_object else _SOURCES[kind](given[kind])
        for name, value in (("kind", kind), ("source", source), ("disable_any_whitespace", disable_any_whitespace)):
            object.__setattr__(self, name, value)

    @property
    def choices(self) -> list[str]:
        """The strings of a ``choice``."""
        return [str(each) for each in json.loads(self.source)]


def _schema(value: Any) -> str:
    text = _sized("json", value if isinstance(value, str) else _dumped(value), MAX_SCHEMA_CHARACTERS)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParamError(f"json is no JSON: {error}; got {show(value)}") from error
    if schema is False:
        raise ParamError("json is the schema False, which no text has")
    if schema is not True and not isinstance(schema, dict):
        raise ParamError(f"json must be a JSON schema, an object or a boolean; got {show(value)}")
    patterns, meet = _patterns(schema)
    if meet and patterns > MAX_MEETING_PATTERNS:
        raise ParamError(
            f"json: {patterns} patterns and formats in a schema that combines some (allOf, $ref beside a pattern); "
            f"at most {MAX_MEETING_PATTERNS}, for the work doubles with each that meets"
        )
    return "{}" if schema is True else text


def _patterns(schema: Any) -> tuple[int, bool]:
    """How many patterns and formats it has, and whether any two may have to hold of one string."""
    count, meet, rest = 0, False, [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            own = sum(isinstance(part.get(name), str) for name in ("pattern", "format"))
            count += own
            meet |= isinstance(part.get("allOf"), list) or (own > 0 and isinstance(part.get("$ref"), str))
            rest += part.values()
        elif isinstance(part, list):
            rest += part
    return count, meet


def _grammar(value: Any) -> str:
    text = _sized("grammar", value, MAX_GRAMMAR_CHARACTERS)
    if (meets := text.count("&")) > MAX_MEETING_PATTERNS:
        raise ParamError(f"grammar: {meets} times &; at most {MAX_MEETING_PATTERNS}, for the work doubles with each")
    return text


def _dumped(value: Any) -> str:
    if not isinstance(value, Mapping | bool):
        raise ParamError(f"json must be a JSON schema: a mapping, a bool, or a string of JSON; got {show(value)}")
    try:
        return json.dumps(value if isinstance(value, bool) else dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ParamError(f"json cannot be written as JSON: {type(error).__name__}: {error}") from error


def _choices(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        raise ParamError(f"choice must be a list or a tuple of strings, got {show(value)}")
    if not 1 <= len(value) <= MAX_CHOICES:
        raise ParamError(f"choice must have 1 to {MAX_CHOICES:,} items, got {len(value):,}")
    for item in value:
        if not isinstance(item, str) or not 1 <= len(item) <= MAX_CHOICE_CHARACTERS:
            raise ParamError(f"choice: an item is 1 to {MAX_CHOICE_CHARACTERS:,} characters, got {show(item)}")
    return _sized("choice", json.dumps(list(value), ensure_ascii=False), MAX_CHOICES * (MAX_CHOICE_CHARACTERS + 16))


def _sized(name: str, text: Any, limit: int) -> str:
    if not isinstance(text, str) or not text:
        raise ParamError(f"{name} must be a string with something in it, got {show(text)}")
    if len(text) > limit:
        raise ParamError(f"{name} may have {limit:,} characters, got {len(text):,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParamError(f"{name} holds half of a surrogate pair at character {error.start:,}") from error
    return str(text)


_SOURCES: dict[str, Callable[[Any], str]] = {
    "json": _schema,
    "regex": lambda value: _sized("regex", value, MAX_REGEX_CHARACTERS),
    "choice": _choices,
    "grammar": _grammar,
}
