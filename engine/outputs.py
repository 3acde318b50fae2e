"""What the caller gets back: plain frozen records, with no behaviour and no reference into the engine.

``finish_reason`` says why a request ended, ``stop_reason`` what exactly ended it:

    "stop"      an end-of-sequence token (None), a stop token id (the id), a stop string (the string)
    "length"    ``max_tokens`` generated, or ``max_model_len`` reached
    "abort"     the caller cancelled it
    "error"     it failed alone; ``RequestOutput.error`` holds the cause

The token that stopped a request is in ``token_ids`` and never in ``text``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ostinato.layers.errors import OstinatoError

FinishReason: TypeAlias = Literal["stop", "length", "abort", "error"]
StopReason: TypeAlias = int | str | None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated continuation; ``finish_reason`` is None while it grows."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A whole request; ``prompt`` is None where token ids were given, ``num_cached_tokens`` counts prompt tokens."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool
    outputs: list[CompletionOutput]
    error: OstinatoError | None = None


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
