"""Text as vectors: hidden states of whole prompts, pooled. Uses an engine's weights, neither its cache nor graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ostinato.layers.errors import ParamError
from ostinato.models.decode_step import StepDecoder
from ostinato.models.whole import hidden_states

Pooling = Literal["last", "mean", "cls"]
POOLINGS = ("last", "mean", "cls")


def check_pooling(pooling: str) -> None:
    """``ParamError`` for another name than "last", "mean" or "cls"."""
    if pooling not in POOLINGS:
        raise ParamError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")


def embed(
    decoder: StepDecoder,
    prompts: Sequence[Sequence[int]],
    pooling: str,
    normalize: bool,
    dtype: torch.dtype,
    device: torch.device,
    max_tokens: int,
    max_positions: int,
) -> Tensor:
    """A vector per prompt, ``[prompts, hidden_size] float32`` on the CPU.

    ``last`` and ``cls`` take the hidden state of the last and of the first token, ``mean`` the mean of all;
    ``normalize`` makes each of length 1. ``max_positions`` decides for longrope, as in the engine's steps. At most
    ``max_tokens`` are in flight at once, but for a longer prompt.
    """
    vectors: list[Tensor] = []
    for group in _groups(prompts, max_tokens):
        lengths = [len(prompt) for prompt in group]
        ids = torch.tensor([token for prompt in group for token in prompt], dtype=torch.int64, device=device)
        enter = partial(decoder.embed_tokens, ids)
        hidden = hidden_states(decoder, lengths, dtype, device, enter, max_positions)
        vectors += [_pool(part.float(), pooling) for part in hidden.split(lengths)]
    if not vectors:
        return torch.zeros(0, decoder.spec.hidden_size)
    stacked = torch.stack(vectors)
    return (torch.nn.functional.normalize(stacked, dim=-1) if normalize else stacked).cpu()


def _groups(prompts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[Sequence[int]]]:
    group: list[Sequence[int]] = []
    for prompt in prompts:
        if group and sum(map(len, group)) + len(prompt) > max_tokens:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _pool(hidden: Tensor, pooling: str) -> Tensor:
    """One of ``hidden [tokens, hidden_size]``."""
    if pooling == "mean":
        return hidden.mean(0)
    return hidden[-1 if pooling == "last" else 0]
