"""What callers may pass as prompts, brought to one shape and checked before anything runs."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ostinato.layers.errors import ParamError
from ostinato.sampling_params import SamplingParams
from ostinato.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Prompts = Prompt | Sequence[Prompt]


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt as token ids, with its text where the caller gave one."""

    text: str | None
    token_ids: list[int]


def as_list(prompts: Any) -> list[Any]:
    """One prompt or many as a list of prompts: a str and a flat sequence of ids are one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if not _is_sequence(prompts):
        raise ParamError(f"prompts: expected str, token ids, or a list of either, got {type(prompts).__name__}")
    items = list(prompts)
    if not items or isinstance(items[0], str) or _is_sequence(items[0]):
        return items
    return [items]


def as_params(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """One ``SamplingParams`` per prompt, from one for all, one each, or none."""
    if params is None:
        return [SamplingParams()] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    if not _is_sequence(params) or not all(isinstance(item, SamplingParams) for item in params):
        raise ParamError(f"sampling_params: expected SamplingParams or a list of them, got {type(params).__name__}")
    if len(params) != count:
        raise ParamError(f"sampling_params: {len(params)} given for {count} prompts")
    return list(params)


def check_prompt(prompt: Any, tokenizer: Tokenizer | None, vocab_size: int) -> CheckedPrompt:
    """Tokenise text; check ids against ``[0, vocab_size)``. ``ParamError`` names what is wrong, with its place."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ParamError("prompt: this checkpoint has no tokenizer; pass token ids")
        token_ids = tokenizer.encode(prompt)
        if not token_ids:
            raise ParamError(f"prompt: {prompt!r} has no tokens")
        return CheckedPrompt(prompt, _check_range(token_ids, vocab_size))
    if not _is_sequence(prompt):
        raise ParamError(f"prompt: expected str or token ids, got {type(prompt).__name__}")
    token_ids = [_as_id(item, place) for place, item in enumerate(prompt)]
    if not token_ids:
        raise ParamError("prompt: no tokens")
    return CheckedPrompt(None, _check_range(token_ids, vocab_size))


def _is_sequence(value: Any) -> bool:
    if isinstance(value, str | bytes | dict) or not hasattr(value, "__getitem__"):
        return False
    try:
        len(value)
    except TypeError:  # an array without dimensions
        return False
    return True


def _as_id(item: Any, place: int) -> int:
    if not isinstance(item, bool):
        with contextlib.suppress(TypeError):
            return operator.index(item)
    raise ParamError(f"prompt: token id at {place} is {item!r}, a {type(item).__name__}; expected an integer")


def _check_range(token_ids: list[int], vocab_size: int) -> list[int]:
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        place, bad = next((i, t) for i, t in enumerate(token_ids) if not 0 <= t < vocab_size)
        raise ParamError(f"prompt: token id at {place} is {bad}; the model's vocabulary is 0 to {vocab_size - 1}")
    return token_ids
