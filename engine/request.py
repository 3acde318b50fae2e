"""One request from submission to its end: its tokens, its blocks and how far it got. Data, changed only by `Scheduler`.

It knows no phase. A request has tokens, some of them computed; each step computes more of them, and computing the last
one yields the next token. Ownership, as intervals over ``token_ids`` (n = len(token_ids)):

    [0, num_prompt_tokens)          given by the caller
    [num_prompt_tokens, n)          generated
    [0, num_computed_tokens)        KV filled, through block_ids; full blocks of it may be shared and are never written
    [num_computed_tokens, n)        still to compute, into blocks that are this request's alone

Steps may be in flight: launched, their tokens not seen yet. Such a step computes [num_computed_tokens,
num_scheduled_tokens), and ``num_pending`` tokens beyond n exist on the device alone: the request *will have*
``num_tokens`` = n + num_pending. Without steps in flight num_scheduled_tokens = num_computed_tokens, num_pending = 0.

Under a sliding window of W tokens [0, num_computed_tokens - W + 1) is seen by nobody again: cells of ``block_ids`` that
lie in it as a whole are 0, the null block, and what they held is given back. Other cells are never 0.

At admission ``num_computed_tokens`` is what the prefix index held; there is always at least one token still to compute,
so the KV of the last token of all is never needed (a step in flight when the request ends may write it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ostinato.layers.errors import OstinatoError
from ostinato.metrics import RequestClock
from ostinato.outputs import FinishReason, StopReason
from ostinato.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ostinato.token_masks import TokenMask


class RequestStatus(Enum):
    """Where a request is; preemption leads back from running to waiting."""

    WAITING = "waiting"  # submitted or preempted: no blocks, no row slot
    RUNNING = "running"  # admitted: has blocks and a row slot
    FINISHED = "finished"  # for good: finish_reason is set, no blocks, no row slot


class TokenProbe(NamedTuple):
    """How likely a token was."""

    logprob: float
    rank: int
    top: list[tuple[int, float]]
    """The likeliest tokens and their logprobs, as many as were asked for."""


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """Tokens and progress of one request; equal only to itself.

    ``digests`` has one entry per full block, as far as somebody asked. ``num_cached_tokens`` is what the first
    admission took from the prefix index (-1 before). ``row_slot`` and ``admission`` are -1 when not running; no two
    admissions ever have the same number, so an unchanged number means an unchanged row. ``mask`` says which tokens it
    may draw; None: all. ``max_length`` (tokens) is lowered to ``max_model_len`` at submission. ``probes`` says, by
    position, how likely tokens were, where that was asked for: written as tokens are brought in, before they count.
    ``fault`` is why its logits were not finite, where that is known. Of the ``n`` sequences of one prompt the first is
    the ``leader`` of the others, its ``followers``, which share its prompt's blocks once it has computed them.
    """

    request_id: int  # in order of arrival
    prompt_token_ids: list[int]  # never changed
    params: SamplingParams
    seed: int = 0  # resolved: 0 <= seed < 2**64
    eos_token_ids: frozenset[int] = frozenset()
    mask: TokenMask | None = None
    leader: Request | None = None
    priority: int = 0  # lower goes first
    deadline: float = math.inf  # seconds of time.monotonic(), when it ends wherever it is

    num_prompt_tokens: int = field(init=False)
    max_length: int = field(init=False)
    token_ids: list[int] = field(init=False)
    num_computed_tokens: int = field(default=0, init=False)
    num_scheduled_tokens: int = field(default=0, init=False)
    num_pending: int = field(default=0, init=False)
    num_cached_tokens: int = field(default=-1, init=False)
    block_ids: list[int] = field(default_factory=list, init=False)
    digests: list[bytes] = field(default_factory=list, init=False)
    row_slot: int = field(default=-1, init=False)
    admission: int = field(default=-1, init=False)
    status: RequestStatus = field(default=RequestStatus.WAITING, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    stop_reason: StopReason = field(default=None, init=False)
    error: OstinatoError | None = field(default=None, init=False)
    probes: dict[int, TokenProbe] = field(default_factory=dict, init=False)
    fault: OstinatoError | None = field(default=None, init=False)
    followers: list[Request] = field(default_factory=list, init=False)
    clock: RequestClock = field(default_factory=RequestClock, init=False)  # begins with its submission

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.prompt_token_ids)
        self.max_length = self.num_prompt_tokens + self.params.max_tokens
        self.token_ids = list(self.prompt_token_ids)

    @property
    def group(self) -> list[Request]:
        """All sequences that were asked for with it, itself first."""
        return [self, *self.followers]

    def restart(self) -> None:
        """Back to waiting with nothing held or computed: the books it was in are gone, its tokens stay."""
        self.status = RequestStatus.WAITING
        self.num_computed_tokens = self.num_scheduled_tokens = self.num_pending = 0
        self.block_ids = []
        self.row_slot = self.admission = -1

    def rank(self) -> tuple[int, int]:
        """Its place in line, lower first: priority, then arrival."""
        return self.priority, self.request_id

    @property
    def num_tokens(self) -> int:
        """Tokens it has, those of steps in flight included."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_generated(self) -> int:
        """Tokens generated so far, as far as they are known."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_drawn(self) -> int:
        """Tokens generated so far, those of steps in flight included: the index of the next one."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def edits(self) -> bool:
        """Whether its logits are changed before a token is chosen."""
        params = self.params
        return self.mask is not None or params.penalises or bool(params.logit_bias or params.logits_processors)

    @property
    def awaits_tokens(self) -> bool:
        """Whether what it may draw next depends on its tokens: no step of it is launched before all are known."""
        return bool(self.params.logits_processors) or (self.mask is not None and self.mask.follows_tokens)

    @property
    def output_token_ids(self) -> list[int]:
        """The generated tokens, copied."""
        return self.token_ids[self.num_prompt_tokens :]

    def __repr__(self) -> str:
        tokens = f"{self.num_prompt_tokens}+{self.num_generated} tokens, {self.num_computed_tokens} computed"
        return f"<Request {self.request_id} {self.status.value}: {tokens}, blocks {self.block_ids}>"


def ending(request: Request, token: int) -> tuple[FinishReason | None, StopReason]:
    """Why ``token``, just appended, ends its request, and what exactly did; (None, None) if it goes on."""
    params = request.params
    if request.num_generated >= params.min_tokens:
        if token in request.eos_token_ids and not params.ignore_eos:
            return "stop", None
        if token in params.stop_token_ids:
            return "stop", token
    if len(request.token_ids) >= request.max_length:
        return "length", None
    return None, None


def has_ended(request: Request) -> bool:
    """Whether its last token should have ended it."""
    return request.num_generated > 0 and ending(request, request.token_ids[-1])[0] is not None


def end_if_due(request: Request) -> bool:
    """End a request that holds nothing, if its last token should have; whether it did."""
    if has_ended(request):
        request.finish_reason, request.stop_reason = ending(request, request.token_ids[-1])
        request.status = RequestStatus.FINISHED
    return request.status is RequestStatus.FINISHED
