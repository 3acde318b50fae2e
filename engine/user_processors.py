"""Logits processors of callers: called between head and sampler, all rows of a step that name the same one at once.

They are Python, so a step that has any runs without a graph, and not before all tokens of its requests are known. They
see copies: float32 logits of their rows, and token ids that are theirs. What one raises, or returns in another shape,
ends its requests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.layers.errors import OstinatoError
from ostinato.request import Request


@dataclass(frozen=True, slots=True)
class ProcessorRow:
    """What a processor may know of one row of logits."""

    prompt_token_ids: list[int]
    output_token_ids: list[int]


LogitsProcessor = Callable[[list[ProcessorRow], Tensor], Tensor]
"""``processor(rows, logits [rows, vocab] float32) -> [rows, vocab]``, of any floating dtype on the same device."""


def processing(requests: Sequence[Request]) -> Callable[[Tensor], Tensor] | None:
    """What becomes of the logits of a step whose rows are ``requests``: ``[rows, vocab]`` to float32; None: nothing.

    Everything that depends on the requests is bound now: it may run later.
    """
    calls = _calls(requests)
    if not calls:
        return None

    def process(logits: Tensor) -> Tensor:
        logits = logits.to(torch.float32, copy=True)
        for processor, rows in calls:
            _apply(processor, [requests[row] for row in rows], [known[row] for row in rows], logits, rows)
        return logits

    known = [ProcessorRow(list(request.prompt_token_ids), request.output_token_ids) for request in requests]
    return process


def _calls(requests: Sequence[Request]) -> list[tuple[LogitsProcessor, list[int]]]:
    """Each processor with its rows: every request's first ones, then the second ones, and so on."""
    depth = max((len(request.params.logits_processors) for request in requests), default=0)
    calls: list[tuple[LogitsProcessor, list[int]]] = []
    for place in range(depth):
        rows: dict[int, tuple[LogitsProcessor, list[int]]] = {}
        for row, request in enumerate(requests):
            if place < len(request.params.logits_processors):
                processor = request.params.logits_processors[place]
                rows.setdefault(id(processor), (processor, []))[1].append(row)
        calls += rows.values()
    return calls


def _apply(
    processor: LogitsProcessor, requests: list[Request], known: list[ProcessorRow], logits: Tensor, rows: list[int]
) -> None:
    """Write what ``processor`` makes of ``logits[rows]`` there; NaN, and the fault into its requests, if it fails."""
    at = torch.tensor(rows, device=logits.device)
    try:
        result = processor(known, logits[at])
        if not isinstance(result, Tensor) or result.shape != (len(rows), logits.shape[1]):
            shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise TypeError(f"it returned {shape} for {len(rows)} rows; [{len(rows)}, {logits.shape[1]}] is needed")
        logits[at] = result.to(logits)
    except Exception as error:  # the caller's code: its fault is its requests' alone
        logits[at] = torch.nan
        for request in requests:
            request.fault = OstinatoError(f"logits_processors: {processor!r:.80} failed: {error!r:.200}")
            request.fault.__cause__ = error
