"""Turns one request's generated tokens into what its caller gets: text, deltas, the final record.

The text so far, as intervals: ``[0, delivered)`` was in deltas already; ``[delivered, shown)`` is in ``_new`` and goes
into the next one; ``[shown, end)`` is ``_held``, because it may become a stop string. From the token that completes a
stop string on nothing is added: what follows it is never in a text, and the stop string only where that was asked for.

Knows tokens, text and why the scheduler ended a request, which it never changes. Without a tokenizer a text is "".
"""

from __future__ import annotations

from ostinato.logprob_records import LogprobRecords
from ostinato.outputs import CompletionOutput, FinishReason, RequestOutput, StopReason, StreamDelta
from ostinato.request import Request
from ostinato.stop_strings import StopStrings
from ostinato.tokenizer import Tokenizer


class OutputProcessor:
    """Push each generated token after the scheduler has committed it; finish once the request has ended."""

    def __init__(self, tokenizer: Tokenizer | None, request: Request, prompt: str | None, index: int = 0) -> None:
        """``index``: which of the sequences of its prompt it is."""
        self._request = request
        self._prompt = prompt
        self._index = index
        self.group = [self]
        """The processors of all sequences of the prompt, this one first; ``output`` puts theirs together."""
        skip = request.params.skip_special_tokens
        self._stream = tokenizer.text_stream(request.prompt_token_ids, skip) if tokenizer is not None else None
        self._logprobs = LogprobRecords(tokenizer, request)
        self._stops = StopStrings(request.params.stop)
        self._stop_string: str | None = None  # the one that was found
        self._held = ""
        self._shown: list[str] = []
        self._new: list[str] = []
        self._num_pushed = 0
        self._num_delivered = 0
        self._finished = False
        self._last_delivered = False

    @property
    def unpushed(self) -> list[int]:
        """The generated tokens that were not pushed yet; none after a stop string."""
        if self._stop_string is not None:
            return []
        return self._request.token_ids[self._request.num_prompt_tokens + self._num_pushed :]

    def push(self, token_id: int) -> str | None:
        """Add one generated token; return the stop string that it completes: the caller then ends the request.

        The token that ended the request itself (end of sequence, a stop token id) has no text, unless the request
        includes what stops it.
        """
        if self._stop_string is not None:
            return None
        self._logprobs.push(self._request.num_prompt_tokens + self._num_pushed, token_id)
        self._num_pushed += 1
        ends_it = self._request.finish_reason == "stop" and self._num_pushed == self._request.num_generated
        if self._stream is None or (ends_it and not self._request.params.include_stop_str_in_output):
            return None
        return self._add(self._stream.push(token_id))

    def finish(self) -> None:
        """Show what was held back: no token follows. Again: no effect."""
        if self._finished:
            return
        self._finished = True
        if self._stream is not None and self._stop_string is None:
            self._add(self._stream.flush())
        self._show(self._held)
        self._held = ""

    def take_delta(self) -> StreamDelta | None:
        """Return what is new since the last call; None when nothing is, and after the delta that says finished."""
        token_ids = self._token_ids(self._num_delivered)
        if self._last_delivered or not (self._new or token_ids or self._finished):
            return None
        text = "".join(self._new)
        self._new.clear()
        logprobs = None if self._logprobs.answer is None else self._logprobs.answer[self._num_delivered :]
        self._num_delivered = self._num_pushed
        self._last_delivered = self._finished
        reason, cause = self._reasons()
        return StreamDelta(
            self._request.request_id, text, token_ids, self._finished, reason, cause, self._num_cached_tokens, logprobs
        )

    def output(self) -> RequestOutput:
        """Return everything so far, without what is held back."""
        request = self._request
        errors = [member._request.error for member in self.group]
        return RequestOutput(
            request_id=request.request_id,
            prompt=self._prompt,
            prompt_token_ids=list(request.prompt_token_ids),
            num_cached_tokens=self._num_cached_tokens,
            finished=all(member._finished for member in self.group),
            outputs=[member._completion() for member in self.group],
            error=next((error for error in errors if error is not None), None),
            prompt_logprobs=self._logprobs.prompt,
            metrics=request.clock.timings(),
        )

    def _completion(self) -> CompletionOutput:
        records = self._logprobs
        logprobs = records.cumulative, None if records.answer is None else list(records.answer)
        return CompletionOutput(self._index, "".join(self._shown), self._token_ids(0), *self._reasons(), *logprobs)

    @property
    def _num_cached_tokens(self) -> int:
        return max(0, self._request.num_cached_tokens)

    def _token_ids(self, start: int) -> list[int]:
        base = self._request.num_prompt_tokens
        return self._request.token_ids[base + start : base + self._num_pushed]

    def _reasons(self) -> tuple[FinishReason | None, StopReason]:
        """A stop string outranks "length" and an end-of-sequence token: it is why the text ends where it does."""
        request = self._request
        if not self._finished:
            return None, None
        if self._stop_string is not None and request.finish_reason not in ("abort", "error"):
            return "stop", self._stop_string
        return request.finish_reason, request.stop_reason

    def _add(self, piece: str) -> str | None:
        text = self._held + piece
        match = self._stops.feed(piece, armed=self._num_pushed >= self._request.params.min_tokens)
        if match is None:
            end = len(text) - self._stops.num_held
        else:
            self._stop_string, end_in_piece = match
            shown = self._request.params.include_stop_str_in_output
            end = len(self._held) + end_in_piece - (0 if shown else len(self._stop_string))
        self._show(text[:end])
        self._held = text[end:] if match is None else ""
        return self._stop_string

    def _show(self, text: str) -> None:
        if text:
            self._shown.append(text)
            self._new.append(text)
