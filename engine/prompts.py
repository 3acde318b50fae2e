"""What callers may pass as prompts, brought to one shape and checked before anything runs."""

from __future__ import annotations

import contextlib
import math
import operator
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ostinato.layers.errors import ParamError
from ostinato.param_checks import show
from ostinato.sampling_params import SamplingParams
from ostinato.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | Messages
Prompts = Prompt | Sequence[Prompt]


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt as token ids, with its text where the caller gave one."""

    text: str | None
    token_ids: list[int]


def as_list(prompts: Any) -> list[Any]:
    """One prompt or many as a list of prompts: a str, a flat sequence of ids and one of messages are one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if not _is_sequence(prompts):
        raise ParamError(f"prompts: expected str, token ids, messages, or a list of them, got {type(prompts).__name__}")
    items = list(prompts)
    if not items or isinstance(items[0], str) or _is_sequence(items[0]):
        return items
    return [items]


def one_prompt(prompt: Any) -> list[Any]:
    """One prompt, in a list; ``ParamError`` for several."""
    items = as_list(prompt)
    if len(items) != 1:
        raise ParamError(f"prompt: a request takes one prompt, got {len(items)}")
    return items


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
    """Tokenise text, render messages, check ids against ``[0, vocab_size)``. ``ParamError`` names what is wrong."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ParamError("prompt: this checkpoint has no tokenizer; pass token ids")
        token_ids = tokenizer.encode(prompt)
        if not token_ids:
            raise ParamError(f"prompt: {prompt!r} has no tokens")
        return CheckedPrompt(prompt, _check_range(token_ids, vocab_size))
    if not _is_sequence(prompt):
        raise ParamError(f"prompt: expected str or token ids, got {type(prompt).__name__}")
    if len(prompt) and isinstance(prompt[0], Mapping):
        return CheckedPrompt(None, _check_range(_render(prompt, tokenizer), vocab_size))
    token_ids = [_as_id(item, place) for place, item in enumerate(prompt)]
    if not token_ids:
        raise ParamError("prompt: no tokens")
    return CheckedPrompt(None, _check_range(token_ids, vocab_size))


def check_priority(priority: Any) -> int:
    """An integer, lower goes first; ``ParamError``."""
    if not isinstance(priority, bool):
        with contextlib.suppress(TypeError):
            return operator.index(priority)
    raise ParamError(f"priority: expected an integer (lower goes first), got {show(priority)}")


def seconds_to_wait(timeout: Any) -> float | None:
    """``timeout`` in seconds, None for ever; less than 0 is 0. ``ParamError`` for what is no number."""
    seconds = math.inf if timeout is None else _seconds(timeout)
    if math.isnan(seconds):
        raise ParamError(f"timeout: expected seconds, or None, got {show(timeout)}")
    return None if seconds == math.inf else max(0.0, min(seconds, threading.TIMEOUT_MAX))


def _seconds(value: Any) -> float:
    """NaN for what is no number."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    return math.nan


def ends_at(deadline: Any) -> float:
    """When a request ends that has ``deadline`` seconds from now, by ``time.monotonic``; infinity without one."""
    if deadline is None:
        return math.inf
    seconds = _seconds(deadline)
    if not 0 < seconds < math.inf:
        raise ParamError(f"deadline: expected seconds from now, more than 0 and finite, got {show(deadline)}")
    return time.monotonic() + seconds


def as_messages(conversation: Any) -> Any:
    """What ``chat`` was given: a str is one message of the user; messages, and the ids of a rendered prompt, stay."""
    return [{"role": "user", "content": conversation}] if isinstance(conversation, str) else conversation


def _render(messages: Messages, tokenizer: Tokenizer | None) -> list[int]:
    """The ids of a conversation, by the checkpoint's own template."""
    if tokenizer is None:
        raise ParamError("chat: this checkpoint has no tokenizer")
    text = tokenizer.render_chat(messages, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


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
