"""One step of work as plain integers: which requests get how many tokens. Made by `Scheduler`, packed by `StepBuffers`.

It knows no phase: a decode row is a row that is given one token, the last it has. Row i computes the tokens
``[starts[i], starts[i] + counts[i])`` of ``requests[i]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ostinato.request import Request


@dataclass(slots=True)
class Step:
    """Rows of one forward pass: decode rows first, then chunks; oldest request first within each.

    ``sample_rows`` are the rows, ascending, that compute the last token they have and therefore yield a new one.
    ``num_tokens`` is the sum of ``counts``.
    """

    requests: list[Request]
    starts: list[int]
    counts: list[int]
    sample_rows: list[int]
    num_tokens: int

    @property
    def is_decode(self) -> bool:
        """Every row computes one token and samples: the shape a captured graph replays."""
        return self.num_tokens == len(self.requests) == len(self.sample_rows)
