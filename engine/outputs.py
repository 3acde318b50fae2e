"""What the caller gets back: plain frozen records, with no behaviour and no reference into the engine.

``finish_reason`` says why a request ended, ``stop_reason`` what exactly ended it:

    "stop"      an end-of-sequence token (None), a stop token id (the id), a stop string (the string)
    "length"    ``max_tokens`` generated, or ``max_model_len`` reached
    "abort"     the caller cancelled it, or closed the engine
    "timeout"   its deadline passed
    "error"     it failed alone; ``RequestOutput.error`` holds the cause

The token that stopped a request is in ``token_ids``, and in ``text`` only with ``include_stop_str_in_output``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ostinato.layers.errors import OstinatoError
from ostinato.metrics import RequestTimings

FinishReason: TypeAlias = Literal["stop", "length", "abort", "timeout", "error"]
StopReason: TypeAlias = int | str | None


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was: its natural logarithm, its rank (1 for the likeliest), its text (None: no tokenizer)."""

    logprob: float
    rank: int
    decoded_token: str | None


Logprobs: TypeAlias = dict[int, Logprob]
"""For one position: the token there and the likeliest ones, by their ids."""


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated continuation; ``finish_reason`` is None while it grows.

    ``logprobs`` has an entry for each of ``token_ids``, ``cumulative_logprob`` is the sum of theirs; None if not asked.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_reason: StopReason
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A whole request; ``prompt`` is None where token ids were given, ``num_cached_tokens`` counts prompt tokens.

    ``outputs`` has one for each of the ``n`` sequences, in order; ``error`` is that of the first that failed.
    ``prompt_logprobs`` has an entry for each token of the prompt as far as it was computed, None for the first, of
    which nothing can be said; None if not asked.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool
    outputs: list[CompletionOutput]
    error: OstinatoError | None = None
    prompt_logprobs: list[Logprobs | None] | None = None
    metrics: RequestTimings | None = None
    """Where its time went; of several sequences, the first one's."""


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """What is new since the last delta; exactly one delta of a request has ``finished`` set, and it is the last."""

    request_id: int
    text: str
    token_ids: list[int]
    finished: bool
    finish_reason: FinishReason | None
    stop_reason: StopReason
    num_cached_tokens: int
    logprobs: list[Logprobs] | None = None
    """One for each of ``token_ids``; None if not asked."""
