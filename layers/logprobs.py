"""How likely the model thought a token, and which it thought the likeliest: read from logits that nothing has edited.

As vLLM's default ("raw logprobs"): log-softmax before biases, penalties, masks, temperature and filters.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Probes(NamedTuple):
    """One entry per row of logits."""

    logprob: Tensor
    """``[rows] float32``: of the token asked for."""
    rank: Tensor
    """``[rows] int64``: how many tokens are at least as likely, itself included: 1 for the likeliest."""
    top_ids: Tensor
    """``[rows, k] int64``: the likeliest tokens, the likeliest first."""
    top_logprobs: Tensor
    """``[rows, k] float32``."""


def probe(logits: Tensor, tokens: Tensor, most: int) -> Probes:
    """Of ``tokens [rows] int64`` (-1: any) under ``logits [rows, vocab]``, and of the ``most`` likeliest, or all."""
    x = logits.float()
    total = x.logsumexp(-1, keepdim=True)
    own = x.gather(1, tokens.clamp_min(0)[:, None])
    top, top_ids = x.topk(min(most, x.shape[1]), -1)
    return Probes((own - total)[:, 0], (x >= own).sum(-1), top_ids, top - total)
