"""Where a step leaves the log-probabilities that its rows asked for, and what the host makes of them.

Results of a step go into static tensors, as its tokens do, and are copied back behind it: in turns, since two steps may
be in flight. Those of prompts have any length, so each gets memory of its own. Knows positions and requests; texts are
made elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.graphs.streams import DeviceStream
from ostinato.layers.logprobs import Probes, probe
from ostinato.request import Request, TokenProbe
from ostinato.sampling_params import MAX_LOGPROBS
from ostinato.step import Step

PROMPT_ROWS = 32
"""Tokens of a prompt whose logits exist at a time."""


@dataclass(frozen=True)
class PromptSpan:
    """Tokens of a mixed step whose logits say how likely the next token of their prompt was."""

    request: Request
    start: int
    """Position of the first."""
    count: int
    at: int
    """Where they begin among the step's tokens."""


@dataclass(frozen=True)
class ProbedPrompt:
    """Results of one span, on the host once its step is done."""

    span: PromptSpan
    probes: Probes


class ProbeBuffers:
    """Results of up to ``rows`` rows that sample."""

    def __init__(self, rows: int, vocab_size: int, stream: DeviceStream) -> None:
        self._stream = stream
        width, on = min(MAX_LOGPROBS, vocab_size), stream.device
        self.device = Probes(
            torch.zeros(rows, device=on),
            torch.zeros(rows, dtype=torch.int64, device=on),
            torch.zeros(rows, width, dtype=torch.int64, device=on),
            torch.zeros(rows, width, device=on),
        )
        self._host = [Probes(*map(self._like, self.device)) for _ in range(2)]

    def _like(self, tensor: Tensor) -> Tensor:
        return self._stream.staging(tensor.nbytes).view(tensor.dtype).view(tensor.shape)

    def results(self, rows: int, turn: int) -> tuple[Probes, Callable[[], None]]:
        """Where this turn's results will be on the host, and what brings them there."""
        host = Probes(*(tensor[:rows] for tensor in self._host[turn % 2]))

        def bring() -> None:
            for to, source in zip(host, self.device, strict=True):
                to.copy_(source[:rows], non_blocking=True)

        return host, bring

    def prompts(
        self, spans: Sequence[PromptSpan], head: Callable[[Tensor], Tensor]
    ) -> tuple[list[ProbedPrompt], Callable[[Tensor], None]]:
        """The same for prompts; what brings their results takes the last layer's output of the step's tokens."""
        probed = [ProbedPrompt(span, self._room(span.count)) for span in spans]
        targets = [self._targets(span) for span in spans]

        def bring(x: Tensor) -> None:
            for prompt, wanted in zip(probed, targets, strict=True):
                tokens = wanted.to(x.device, non_blocking=True)
                for first in range(0, prompt.span.count, PROMPT_ROWS):
                    rows = slice(first, min(first + PROMPT_ROWS, prompt.span.count))
                    hidden = x[prompt.span.at + rows.start : prompt.span.at + rows.stop]
                    for to, source in zip(prompt.probes, probe(head(hidden), tokens[rows], MAX_LOGPROBS), strict=True):
                        to[rows].copy_(source, non_blocking=True)

        return probed, bring

    def _room(self, rows: int) -> Probes:
        return Probes(*(self._like(tensor[:1].expand(rows, *tensor.shape[1:])) for tensor in self.device))

    def _targets(self, span: PromptSpan) -> Tensor:
        staged = self._stream.staging(8 * span.count).view(torch.int64)
        staged[:] = torch.tensor(span.request.prompt_token_ids[span.start + 1 : span.start + 1 + span.count])
        return staged


def prompt_spans(step: Step) -> list[PromptSpan]:
    """What ``prompt_logprobs`` wants to know of a step: of a prompt's last token it is no prompt's logprob any more."""
    spans, at = [], 0
    for request, start, count in zip(step.requests, step.starts, step.counts, strict=True):
        known = min(count, request.num_prompt_tokens - 1 - start)
        if request.params.prompt_logprobs is not None and known > 0:
            spans.append(PromptSpan(request, start, known, at))
        at += count
    return spans


def keep_sampled(step: Step, probes: Probes) -> None:
    """Hand the results of a step to its requests, by the position of the token that was drawn."""
    for place, row in enumerate(step.sample_rows):
        request, most = step.requests[row], step.requests[row].params.logprobs
        if most is not None:
            request.probes[step.starts[row] + step.counts[row]] = _token_probe(probes, place, most)


def keep_prompts(probed: Sequence[ProbedPrompt]) -> None:
    """The same for prompts, by the position of the token that was given."""
    for span, probes in ((prompt.span, prompt.probes) for prompt in probed):
        for place in range(span.count):
            most = span.request.params.prompt_logprobs or 0
            span.request.probes[span.start + place + 1] = _token_probe(probes, place, most)


def _token_probe(probes: Probes, row: int, most: int) -> TokenProbe:
    top = zip(probes.top_ids[row, :most].tolist(), probes.top_logprobs[row, :most].tolist(), strict=True)
    return TokenProbe(float(probes.logprob[row]), int(probes.rank[row]), list(top))
