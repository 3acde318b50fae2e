"""What each sampling row draws with, in static tensors: rewritten only when the rows change hands."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from ostinato.arena import Arena, Copy
from ostinato.graphs.streams import DeviceStream
from ostinato.layers.logit_edits import EditInputs
from ostinato.layers.sampler import SamplingInputs
from ostinato.models.step_inputs import Sampling
from ostinato.request import Request

MAX_BLOCKED_IDS = 64
"""Tokens per row that ``min_tokens`` can hold back: the model's and the request's stop ids together."""

NO_TOP_K = 1 << 24
_PADDING = {"top_k": NO_TOP_K, "top_p": 1, "repetition": 1}


class SamplingBuffers:
    """Parameters of up to ``rows`` rows; ``sampling`` says how much work those packed last ask for, ``changed`` whether
    they are others than those before.

    Rows beyond are padding (temperature 0, no edits) in every step that reads them; a greedy step reads none.
    """

    def __init__(self, rows: int, stream: DeviceStream, kinds: Sequence[Sampling]) -> None:
        """``kinds``: the amounts of sampling work that there are graphs for, least first; the last covers all."""
        blocked = (rows, MAX_BLOCKED_IDS)
        self._arena = Arena(
            {
                "temperature": ((rows,), np.float32),
                "top_k": ((rows,), np.float32),
                "top_p": ((rows,), np.float32),
                "min_p": ((rows,), np.float32),
                "seed": ((rows,), np.int64),
                **dict.fromkeys(("repetition", "presence", "frequency", "biased", "masked"), ((rows,), np.float32)),
                "blocked_ids": (blocked, np.int64),
                "blocked": (blocked, np.float32),
            },
            stream,
        )
        self._rows, self._kinds = rows, kinds
        self.forget()

    def forget(self) -> None:
        """Nothing but padding on the host; the next rows are written whoever they are."""
        self.sampling = Sampling.GREEDY
        self._packed: list[int] | None = None
        self.changed = True
        self._blocking = False
        for turn in range(len(self._arena.host)):
            self._pad(turn, 0, self._rows)
        self._written = [0] * len(self._arena.host)

    def named_tensors(self) -> dict[str, Tensor]:
        """The tensors that steps read."""
        return self._arena.device

    def copies(self, turn: int) -> list[Copy]:
        """What brings all parameters over."""
        return self._arena.copies(turn)

    def inputs(self, rows: int, draw: Tensor) -> SamplingInputs:
        """The first ``rows`` rows; ``draw [rows]`` counts the generated tokens and changes with every step."""
        named = {n: tensor[:rows] for n, tensor in self._arena.device.items() if n in SamplingInputs._fields}
        return SamplingInputs(**named, position=draw[:rows])

    def edits(self, rows: int, row_slot: Tensor, tables: Mapping[str, Tensor]) -> EditInputs:
        """What edits the logits of the first ``rows`` rows; ``row_slot [rows]`` says where in the ``tables``."""
        named = {n: tensor[:rows] for n, tensor in self._arena.device.items() if n in EditInputs._fields}
        return EditInputs(**named, **tables, row_slot=row_slot[:rows])

    def pack(self, requests: Sequence[Request], turn: int) -> list[Copy]:
        """Write the rows if they are others than last time, or may draw other tokens; returns what has to be copied."""
        admissions = [request.admission for request in requests]
        self.changed = admissions != self._packed
        if not self.changed and not self._blocking:
            return []
        self._packed = admissions
        held_back = [stop_ids(r) if r.num_drawn < r.params.min_tokens else () for r in requests]
        self._blocking = any(held_back)
        self.sampling = self._work(requests)
        if not self.sampling.draws and not self.sampling.edits:
            return []
        self._write(requests, held_back, turn)
        return self._arena.copies(turn)

    def _work(self, requests: Sequence[Request]) -> Sampling:
        drawn = [request.params for request in requests if not request.params.greedy]
        draws = bool(drawn) or self._blocking
        filters = any(params.top_k or params.top_p < 1 for params in drawn)
        edits = any(request.edits for request in requests)
        probes = any(request.params.logprobs is not None for request in requests)
        asked = {"draws": draws, "filters": filters, "edits": edits, "probes": probes}
        return next(kind for kind in self._kinds if kind.covers(**asked))

    def _write(self, requests: Sequence[Request], held_back: Sequence[Collection[int]], turn: int) -> None:
        host, rows = self._arena.host[turn], len(requests)
        params = [request.params for request in requests]
        host["temperature"][:rows] = [p.temperature for p in params]
        host["top_k"][:rows] = [p.top_k or NO_TOP_K for p in params]
        host["top_p"][:rows] = [p.top_p for p in params]
        host["min_p"][:rows] = [p.min_p for p in params]
        host["seed"].view(np.uint64)[:rows] = [request.seed for request in requests]
        host["blocked"][:rows] = 0
        host["repetition"][:rows] = [p.repetition_penalty for p in params]
        host["presence"][:rows] = [p.presence_penalty for p in params]
        host["frequency"][:rows] = [p.frequency_penalty for p in params]
        host["biased"][:rows] = [bool(p.logit_bias) for p in params]
        host["masked"][:rows] = [request.mask is not None for request in requests]
        for row, ids in enumerate(held_back):
            host["blocked_ids"][row, : len(ids)] = sorted(ids)
            host["blocked"][row, : len(ids)] = -np.inf
        self._pad(turn, rows, self._written[turn])
        self._written[turn] = rows

    def _pad(self, turn: int, first: int, last: int) -> None:
        for name, array in self._arena.host[turn].items():
            array[first:last] = _PADDING.get(name, 0)


def stop_ids(request: Request) -> set[int]:
    """The tokens that may not be drawn before ``min_tokens``."""
    return {*request.params.stop_token_ids, *(() if request.params.ignore_eos else request.eos_token_ids)}
