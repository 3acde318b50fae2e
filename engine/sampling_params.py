"""What one request asks for: how to sample, when to stop, whether to share its prefix.

Owns the meaning and the range of every parameter. A `SamplingParams` that exists is valid: nothing behind it checks
again. It knows no tokenizer, vocabulary or model, so bounds that depend on them (a token id below the vocabulary size,
a prompt that fits) are the engine's to check. Torch-free and numpy-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Never

from ostinato.layers.errors import ParamError
from ostinato.param_checks import (
    INT32_MAX,
    biases,
    flag,
    fraction,
    function,
    integer,
    items,
    nearest,
    real,
    show,
    string,
    token_id,
    within,
)
from ostinato.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from ostinato.user_processors import LogitsProcessor

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6  # logits divided by it stay finite and distinct in float32
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
MAX_PENALTY = 2.0
"""Of a presence or frequency penalty, either way."""
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 31
MAX_LOGIT_BIAS = 300
"""Tokens that one request may bias."""
LARGEST_BIAS = 100.0
MAX_ALLOWED_TOKEN_IDS = 1 << 20
MAX_BAD_WORDS = 128
MAX_N = 16
MAX_LOGITS_PROCESSORS = 8
MAX_LOGPROBS = 20
"""Likeliest tokens that are told of each token."""


@dataclass(frozen=True, init=False)
class SamplingParams:
    """Sampling parameters of one request; keyword arguments only. Names and meanings are vLLM's unless said otherwise.

    Which token is drawn: logits are biased, penalised and masked, then divided by the temperature and filtered.

    n: sequences for one prompt, 1 to 16; ``RequestOutput.outputs`` has them in order. They share the prompt's full
        blocks through the prefix cache, and sequence i draws what a request of its own with ``seed + i`` would. Not
        with temperature 0, where all would be the same; a stream has one sequence.
    temperature: 0 is greedy (an exact argmax of the edited logits), else 1e-6 to 1e6.
    top_k: keep the k likeliest tokens; 0 or -1 keeps all (stored as 0).
    top_p: keep the likeliest tokens whose probabilities reach it, in (0, 1].
    min_p: keep tokens at least this fraction as likely as the likeliest, in [0, 1].
    seed: in [-2**63, 2**64); None lets the engine draw one, so that equal prompts are not clones.
    repetition_penalty: transformers' (Keskar et al. 2019): for every token of the prompt and of the answer so far, a
        positive logit is divided by it, a negative one multiplied; 0.01 to 100, 1 is off.
    presence_penalty: OpenAI's: subtracted from the logit of every token that the answer has so far; -2 to 2, 0 is off.
    frequency_penalty: OpenAI's: subtracted as often as the answer has the token so far; -2 to 2, 0 is off.
    logit_bias: OpenAI's: up to 300 token ids, each with -100 to 100 that is added to its logit before the penalties.
    allowed_token_ids: no other token is drawn; at least one id, None is off.
    bad_words: up to 128 strings whose tokens are not drawn in a row: each as it is and after a space, as its tokenizer
        splits it. The last token of one is excluded where those before it end the prompt and the answer so far
        (transformers' ``bad_words_ids``; vLLM looks at the answer alone). Words of several tokens keep the engine from
        launching a step before the last one's token has arrived (``stats().launches_held_back``).
    logits_processors: up to 8 callables ``processor(rows, logits) -> logits``, called in turn before all of the above:
        ``rows`` is a list of ``ProcessorRow(prompt_token_ids, output_token_ids)``, logits are ``[rows, vocab]`` float32
        on the model's device. One call serves all rows of a step that name the same object. They cost their steps the
        graph and the launch ahead (``stats().steps_without_graph``); an error ends the requests of that call alone.
    logprobs: tell how likely each token of the answer was, and this many of the likeliest, 0 to 20; None is off. Of the
        model's own distribution, before edits and temperature (vLLM's "raw logprobs").
    prompt_logprobs: the same for each token of the prompt but the first. The whole prompt is computed then: what other
        requests have cached of it is not used.
    structured_outputs: the form of the text (``StructuredOutputsParams``): a JSON schema, a regular expression, a
        grammar, or a choice. The end of the text is an end-of-sequence token's to say, so neither ``ignore_eos`` nor
        ``min_tokens`` goes with it. Its steps are launched as those of long ``bad_words`` are.
    max_tokens, min_tokens: generated tokens. Before `min_tokens` nothing but an error or an abort ends the request.
    stop: one string or up to 16; generation ends where one appears, and the text ends before it.
    stop_token_ids: up to 31 token ids that end generation as an end-of-sequence token does.
    ignore_eos: go on after the model's own end-of-sequence tokens.
    include_stop_str_in_output: the text ends behind the stop string, or the token, that ended it, not before it.
    skip_special_tokens: False: special tokens have their text in the answer (that which ends it only with
        ``include_stop_str_in_output``).
    cache_salt: requests share cached prefixes only with requests of the same salt.
    enable_prefix_caching: False neither reads nor feeds the prefix cache.

    A request whose every token is excluded ends with an error. Raises ParamError, naming the parameter and its value.
    """

    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    allowed_token_ids: tuple[int, ...] | None
    bad_words: tuple[str, ...]
    logits_processors: tuple[LogitsProcessor, ...]
    logprobs: int | None
    prompt_logprobs: int | None
    structured_outputs: StructuredOutputsParams | None
    max_tokens: int
    min_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    cache_salt: str | None
    enable_prefix_caching: bool

    def __init__(
        self,
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        allowed_token_ids: Sequence[int] | None = None,
        bad_words: Sequence[str] = (),
        logits_processors: Sequence[LogitsProcessor] = (),
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        structured_outputs: StructuredOutputsParams | None = None,
        max_tokens: int = 64,
        min_tokens: int = 0,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        cache_salt: str | None = None,
        enable_prefix_caching: bool = True,
        **unknown: Never,  # Never: a type checker refuses what is only met at run time here
    ) -> None:
        for name in unknown:
            raise ParamError(f"SamplingParams has no parameter {name!r}{nearest(name, self.__dataclass_fields__)}")
        max_tokens = integer("max_tokens", max_tokens, 1, INT32_MAX)
        repeat_limits = MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY
        degrees = _temperature(temperature)
        valid = {
            "n": _n(n, degrees),
            "temperature": degrees,
            "top_k": max(0, integer("top_k", top_k, -1, INT32_MAX)),
            "top_p": fraction("top_p", top_p, zero_allowed=False),
            "min_p": fraction("min_p", min_p, zero_allowed=True),
            "seed": None if seed is None else integer("seed", seed, -(2**63), 2**64 - 1),
            "repetition_penalty": within("repetition_penalty", repetition_penalty, *repeat_limits),
            "presence_penalty": within("presence_penalty", presence_penalty, -MAX_PENALTY, MAX_PENALTY),
            "frequency_penalty": within("frequency_penalty", frequency_penalty, -MAX_PENALTY, MAX_PENALTY),
            "logit_bias": biases("logit_bias", () if logit_bias is None else logit_bias, MAX_LOGIT_BIAS, LARGEST_BIAS),
            "allowed_token_ids": None if allowed_token_ids is None else _allowed(allowed_token_ids),
            "bad_words": items("bad_words", bad_words, MAX_BAD_WORDS, string),
            "logits_processors": items("logits_processors", logits_processors, MAX_LOGITS_PROCESSORS, function),
            "logprobs": None if logprobs is None else integer("logprobs", logprobs, 0, MAX_LOGPROBS),
            "prompt_logprobs": None if prompt_logprobs is None else _prompt_logprobs(prompt_logprobs),
            "structured_outputs": _structured(structured_outputs),
            "max_tokens": max_tokens,
            "min_tokens": _min_tokens(min_tokens, max_tokens),
            "stop": items("stop", [stop] if isinstance(stop, str) else stop, MAX_STOP_STRINGS, string),
            "stop_token_ids": items("stop_token_ids", stop_token_ids, MAX_STOP_TOKEN_IDS, token_id),
            "ignore_eos": flag("ignore_eos", ignore_eos),
            "include_stop_str_in_output": flag("include_stop_str_in_output", include_stop_str_in_output),
            "skip_special_tokens": flag("skip_special_tokens", skip_special_tokens),
            "cache_salt": None if cache_salt is None else _salt(cache_salt),
            "enable_prefix_caching": flag("enable_prefix_caching", enable_prefix_caching),
        }
        for name, value in valid.items():
            object.__setattr__(self, name, value)  # the one place: a frozen dataclass has no other way to be filled
        if self.structured_outputs is not None and (self.ignore_eos or self.min_tokens):
            name = "ignore_eos" if self.ignore_eos else f"min_tokens = {self.min_tokens}"
            raise ParamError(f"{name} does not go with structured_outputs: an end-of-sequence token ends the text")

    @property
    def greedy(self) -> bool:
        """An exact argmax: no noise is drawn."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether it matters how often a token was there before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def _n(value: object, temperature: float) -> int:
    number = integer("n", value, 1, MAX_N)
    if number > 1 and temperature == 0:
        raise ParamError(f"n is {number} with temperature 0: all sequences would be the same")
    return number


def _temperature(value: object) -> float:
    number = real("temperature", value)
    if number != 0 and not MIN_TEMPERATURE <= number <= MAX_TEMPERATURE:
        limits = f"from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        raise ParamError(f"temperature must be 0 (greedy) or {limits}, got {show(value)}")
    return abs(number)  # -0.0 is 0


def _prompt_logprobs(value: object) -> int:
    return integer("prompt_logprobs", value, 0, MAX_LOGPROBS)


def _min_tokens(value: object, max_tokens: int) -> int:
    number = integer("min_tokens", value, 0, INT32_MAX)
    if number > max_tokens:
        raise ParamError(f"min_tokens is {number}, above max_tokens, which is {max_tokens}")
    return number


def _structured(value: object) -> StructuredOutputsParams | None:
    if value is not None and not isinstance(value, StructuredOutputsParams):
        raise ParamError(f"structured_outputs must be a StructuredOutputsParams, got {show(value)}")
    return value


def _allowed(value: object) -> tuple[int, ...]:
    ids = items("allowed_token_ids", value, MAX_ALLOWED_TOKEN_IDS, token_id)
    if not ids:
        raise ParamError("allowed_token_ids has no items: no token could be drawn; None allows all")
    return ids


def _salt(value: object) -> str:
    salt = string("cache_salt", value)
    try:
        salt.encode()
    except UnicodeEncodeError:
        raise ParamError(f"cache_salt must be encodable as UTF-8, got {show(value)}") from None
    return salt
