"""What one request asks for: how to sample, when to stop, whether to share its prefix.

Owns the meaning and the range of every parameter. A `SamplingParams` that exists is valid: nothing behind it checks
again. It knows no tokenizer, vocabulary or model, so bounds that depend on them (a stop token id below the vocabulary
size, a prompt that fits) are the engine's to check. Torch-free and numpy-free; numpy scalars are taken and become
Python numbers.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Never

from ostinato.layers.errors import ParamError

INT32_MAX = 2**31 - 1  # top_k, lengths and token ids travel to the device as int32
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6  # logits divided by it stay finite and distinct in float32
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 31
MAX_STRING_LENGTH = 1_000  # characters of one stop string or of the salt


@dataclass(frozen=True, init=False)
class SamplingParams:
    """Sampling parameters of one request; keyword arguments only.

    temperature: 0 is greedy (an exact argmax), else 1e-6 to 1e6.
    top_k: keep the k likeliest tokens; 0 or -1 keeps all (stored as 0).
    top_p: keep the likeliest tokens whose probabilities reach it, in (0, 1].
    min_p: keep tokens at least this fraction as likely as the likeliest, in [0, 1].
    seed: in [-2**63, 2**64); None lets the engine draw one, so that equal prompts are not clones.
    max_tokens, min_tokens: generated tokens. Before `min_tokens` nothing but an error or an abort ends the request.
    stop: one string or up to 16; generation ends where one appears, and the text ends before it.
    stop_token_ids: up to 31 token ids that end generation as an end-of-sequence token does.
    ignore_eos: go on after the model's own end-of-sequence tokens.
    cache_salt: requests share cached prefixes only with requests of the same salt.
    enable_prefix_caching: False neither reads nor feeds the prefix cache.

    Raises ParamError, naming the parameter and its value.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    max_tokens: int
    min_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    cache_salt: str | None
    enable_prefix_caching: bool

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        max_tokens: int = 64,
        min_tokens: int = 0,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        cache_salt: str | None = None,
        enable_prefix_caching: bool = True,
        **unknown: Never,  # Never: a type checker refuses what is only met at run time here
    ) -> None:
        for name in unknown:
            raise ParamError(f"SamplingParams has no parameter {name!r}{nearest(name, self.__dataclass_fields__)}")
        max_tokens = _integer("max_tokens", max_tokens, 1, INT32_MAX)
        valid = {
            "temperature": _temperature(temperature),
            "top_k": max(0, _integer("top_k", top_k, -1, INT32_MAX)),
            "top_p": _fraction("top_p", top_p, zero_allowed=False),
            "min_p": _fraction("min_p", min_p, zero_allowed=True),
            "seed": None if seed is None else _integer("seed", seed, -(2**63), 2**64 - 1),
            "max_tokens": max_tokens,
            "min_tokens": _min_tokens(min_tokens, max_tokens),
            "stop": _stop(stop),
            "stop_token_ids": _stop_token_ids(stop_token_ids),
            "ignore_eos": _flag("ignore_eos", ignore_eos),
            "cache_salt": None if cache_salt is None else _salt(cache_salt),
            "enable_prefix_caching": _flag("enable_prefix_caching", enable_prefix_caching),
        }
        for name, value in valid.items():
            object.__setattr__(self, name, value)  # the one place: a frozen dataclass has no other way to be filled

    @property
    def greedy(self) -> bool:
        """An exact argmax: no noise is drawn."""
        return self.temperature == 0


def nearest(name: str, known: Collection[str]) -> str:
    """The hint after an unknown option name: ``"; did you mean 'top_p'?"``, or the list of all known names."""
    from difflib import get_close_matches  # only paid for on a mistake

    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def show(value: object) -> str:
    """A value for an error message: short, and never an error of its own (a 5,000-digit int cannot be printed)."""
    try:
        text = repr(value)
    except Exception:
        text = "a value that cannot be printed"
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ParamError(f"{name} must be an integer, got {show(value)}")
    number = operator.index(value)
    if not low <= number <= high:
        raise ParamError(f"{name} must be from {low} to {high}, got {show(number)}")
    return number


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ParamError(f"{name} must be a number, got {show(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ParamError(f"{name} must be finite, got {show(value)}")
    return number


def _temperature(value: object) -> float:
    number = _real("temperature", value)
    if number != 0 and not MIN_TEMPERATURE <= number <= MAX_TEMPERATURE:
        limits = f"from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        raise ParamError(f"temperature must be 0 (greedy) or {limits}, got {show(value)}")
    return abs(number)  # -0.0 is 0


def _fraction(name: str, value: object, *, zero_allowed: bool) -> float:
    number = _real(name, value)
    if not 0 <= number <= 1 or (number == 0 and not zero_allowed):
        raise ParamError(f"{name} must be in {'[' if zero_allowed else '('}0, 1], got {show(value)}")
    return abs(number)


def _min_tokens(value: object, max_tokens: int) -> int:
    number = _integer("min_tokens", value, 0, INT32_MAX)
    if number > max_tokens:
        raise ParamError(f"min_tokens is {number}, above max_tokens, which is {max_tokens}")
    return number


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ParamError(f"{name} must be True or False, got {show(value)}")
    return value


def _string(name: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_STRING_LENGTH:
        raise ParamError(f"{name} must be a string of 1 to {MAX_STRING_LENGTH:,} characters, got {show(value)}")
    return str(value)


def _salt(value: object) -> str:
    salt = _string("cache_salt", value)
    try:
        salt.encode()
    except UnicodeEncodeError:
        raise ParamError(f"cache_salt must be encodable as UTF-8, got {show(value)}") from None
    return salt


def _items(name: str, value: object, limit: int) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        raise ParamError(f"{name} must be a list or a tuple, got {show(value)}")
    if len(value) > limit:
        raise ParamError(f"{name} may have {limit} items, got {len(value):,}")
    return value


def _stop(value: object) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else _items("stop", value, MAX_STOP_STRINGS)
    return tuple(_string("stop", item) for item in items)


def _stop_token_ids(value: object) -> tuple[int, ...]:
    items = _items("stop_token_ids", value, MAX_STOP_TOKEN_IDS)
    return tuple(_integer("stop_token_ids", item, 0, INT32_MAX) for item in items)
