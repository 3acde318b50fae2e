"""What a request may do to its logits before a token is chosen: biases, penalties, and which tokens it may draw at all.

Elementwise, so a row's result depends on no other row, and a row that asks for nothing keeps its logits bit for bit.
What is large (token counts, masks, biases) lives in tables by row slot and is read only for rows that say so; the step
counts the token it drew by itself, so that the next step can be launched before the host has seen it. The order is
vLLM's: bias, then penalties; what a mask excludes stays excluded whatever the order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class EditInputs(NamedTuple):
    """Per row what to do, ``[rows]``; then the tables, one row per slot."""

    repetition: Tensor
    """float32; a logit of a token in the prompt or the answer is divided by it if positive, else multiplied (Keskar et
    al. 2019, as in transformers); 1 does nothing."""
    presence: Tensor
    """float32; subtracted from the logit of each token in the answer (OpenAI); 0 does nothing."""
    frequency: Tensor
    """float32; subtracted once for each of its occurrences in the answer (OpenAI); 0 does nothing."""
    biased: Tensor
    """float32: 1 where the slot's biases count, else 0."""
    masked: Tensor
    """float32: 1 where the slot's mask counts, else 0."""
    row_slot: Tensor
    """int64: the row's place in the tables; padding uses the spare one."""
    counts: Tensor
    """``[slots + 1, vocab] int32``: twice the token's occurrences in the answer, and 1 if it is in the prompt. 16 bits
    would do, but on a CPU Inductor vectorises no such integers: all of ``edit`` would take ten times as long."""
    bias_ids: Tensor
    """``[slots + 1, n] int64``: tokens, none twice, padded with any id."""
    bias: Tensor
    """``[slots + 1, n] float32``: what is added to their logits; 0 for padding."""
    mask: Tensor
    """``[slots + 1, ceil(vocab / 32)] int32``: bit ``t % 32`` of word ``t // 32`` says that token t may be drawn."""


def edit(logits: Tensor, inputs: EditInputs) -> Tensor:
    """``logits [rows, vocab]`` edited, in float32. A row with NaN or +inf keeps one."""
    slot = inputs.row_slot
    bias = inputs.bias[slot] * inputs.biased[:, None]
    x = logits.float().scatter_add(1, inputs.bias_ids[slot], bias)
    counts = inputs.counts[slot]
    repetition = inputs.repetition[:, None]
    x = torch.where(counts > 0, torch.where(x > 0, x / repetition, x * repetition), x)
    drawn = counts >> 1
    x = x - drawn.float() * inputs.frequency[:, None]
    x = x - torch.where(drawn > 0, inputs.presence[:, None], 0.0)
    allowed = (_bits(inputs.mask[slot], logits.shape[1]) != 0) | (inputs.masked[:, None] == 0)
    return x + torch.where(allowed, 0.0, float("-inf"))  # NaN and +inf become NaN, which fails the row


def _bits(words: Tensor, size: int) -> Tensor:
    """The first ``size`` bits of each row of ``words [rows, n] int32``: ``[rows, size] int32`` of 0 and 1."""
    bits = (words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
    return bits.reshape(words.shape[0], -1)[:, :size]


def count_drawn(counts: Tensor, row_slot: Tensor, tokens: Tensor) -> None:
    """Count ``tokens [rows] int64`` in the slots they belong to; a row that failed (-1) drew none."""
    token = tokens.clamp_min(0)
    drawn = 2 * (tokens >= 0).to(counts.dtype)
    counts.index_put_((row_slot, token), counts[row_slot, token] + drawn)
