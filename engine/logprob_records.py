"""From what a step said of a request's tokens to the records that its caller gets."""

from __future__ import annotations

from ostinato.outputs import Logprob, Logprobs
from ostinato.request import Request, TokenProbe
from ostinato.tokenizer import Tokenizer


class LogprobRecords:
    """Of one request. ``answer`` grows with every token pushed, if ``logprobs`` was asked for."""

    def __init__(self, tokenizer: Tokenizer | None, request: Request) -> None:
        self._tokenizer = tokenizer
        self._request = request
        self.answer: list[Logprobs] | None = None if request.params.logprobs is None else []
        self.cumulative: float | None = None if request.params.logprobs is None else 0.0

    def push(self, position: int, token: int) -> None:
        """Take note of the token at ``position`` of the request's."""
        if self.answer is not None and self.cumulative is not None:
            probe = self._request.probes[position]
            self.answer.append(self._record(token, probe))
            self.cumulative += probe.logprob

    @property
    def prompt(self) -> list[Logprobs | None] | None:
        """Of the prompt's tokens, as far as they are known."""
        request = self._request
        if request.params.prompt_logprobs is None:
            return None
        records: list[Logprobs | None] = [None]
        for position in range(1, request.num_prompt_tokens):
            if (probe := request.probes.get(position)) is None:
                break
            records.append(self._record(request.token_ids[position], probe))
        return records

    def _record(self, token: int, probe: TokenProbe) -> Logprobs:
        """The token itself first, then the likeliest."""
        entries = [(token, probe.logprob, probe.rank)]
        entries += [(other, logprob, rank) for rank, (other, logprob) in enumerate(probe.top, 1) if other != token]
        return {entry: Logprob(logprob, rank, self._text(entry)) for entry, logprob, rank in entries}

    def _text(self, token: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.decode([token], skip_special_tokens=False)
