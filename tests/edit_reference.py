"""What requests that edit their logits generate: by transformers' processors where there are any, else by loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engines import reference_logits
from ostinato import SamplingParams
from ostinato.sampling_buffers import NO_TOP_K
from test_sampler import inputs, select

Logits = Callable[[Sequence[int]], Tensor]
"""From the tokens so far to ``[vocab]``."""


def edited(
    logits: Tensor, prompt: Sequence[int], answer: Sequence[int], params: SamplingParams, bad_ids: Any = ()
) -> Tensor:
    """``logits [vocab]`` after every processor, in the order that ``SamplingParams`` promises."""
    from transformers.generation import logits_process as lp

    ids, scores = torch.tensor([[*prompt, *answer]]), logits.float()[None].clone()
    for token, bias in params.logit_bias:
        scores[0, token] += bias
    if params.repetition_penalty != 1:
        scores = lp.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    for token, times in Counter(answer).items():
        scores[0, token] -= times * params.frequency_penalty
        scores[0, token] -= params.presence_penalty
    if params.allowed_token_ids is not None:
        excluded = torch.ones(scores.shape[1], dtype=torch.bool)
        excluded[list(params.allowed_token_ids)] = False
        scores[0, excluded] = -torch.inf
    if bad_ids:
        processor = lp.NoBadWordsLogitsProcessor([list(word) for word in bad_ids])
        scores = processor(ids, scores)
    return scores[0]


def generated(
    logits: Logits, prompt: Sequence[int], params: SamplingParams, seed: int = 0, bad_ids: Any = ()
) -> list[int]:
    """``max_tokens`` tokens: nothing remembered between them."""
    answer: list[int] = []
    for position in range(params.max_tokens):
        scores = edited(logits([*prompt, *answer]), prompt, answer, params, bad_ids)
        asked = inputs(
            1,
            temperature=params.temperature,
            top_k=params.top_k or NO_TOP_K,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=seed,
            position=position,
        )
        answer.append(int(select(scores[None], asked)))
    return answer


def of_variant(variant: str) -> Logits:
    """The logits of a checkpoint's transformers model."""
    return lambda tokens: reference_logits(variant, tokens)[-1]
