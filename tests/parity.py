"""The work on which our models are compared with transformers: two sequences, and the ways to cut them up."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import torch
from torch import Tensor

from engines import checkpoint
from ostinato.models.decoder import Decoder
from reference import reference_logits
from step_driver import StepDriver, load

Way = Callable[[StepDriver], list[Tensor]]


def sequence(length: int, seed: int) -> list[int]:
    """Random tokens."""
    draw = random.Random(seed)
    return [draw.randrange(112) for _ in range(length)]


# Several windows and blocks, and both beyond the 32 tokens after which a variant of Phi-3 has another rope.
LONG, SHORT = sequence(40, 0), sequence(35, 1)


@functools.cache
def loaded(variant: str) -> Decoder:
    """Our model of the variant."""
    return load(checkpoint(variant)[0])


@functools.cache
def expected(variant: str, length: int) -> Tensor:
    """The reference's logits for ``LONG`` (40) or ``SHORT`` (35): ``[length, vocab_size]``."""
    return reference_logits(checkpoint(variant)[1], {40: LONG, 35: SHORT}[length])


def one_prefill(driver: StepDriver) -> list[Tensor]:
    """The whole sequence in one step."""
    return driver.mixed([(0, LONG)])


def chunks_then_tokens(driver: StepDriver) -> list[Tensor]:
    """Chunks that end within blocks, then one token at a time."""
    chunks = [*driver.mixed([(0, LONG[:17])]), *driver.mixed([(0, LONG[17:23])])]
    tokens = [logits for token in LONG[23:] for logits in driver.decode([(0, [token])], padding=0)]
    return [torch.cat([*chunks, *tokens])]


def batched(driver: StepDriver) -> list[Tensor]:
    """Two sequences whose chunks, single tokens and decodes share steps, in changing order, beside padding."""
    parts: dict[int, list[Tensor]] = {0: [], 2: []}

    def take(step: Callable[..., list[Tensor]], *work: tuple[int, list[int]]) -> None:
        for (row, _), logits in zip(work, step(work), strict=True):
            parts[row].append(logits)

    take(driver.mixed, (2, SHORT[:9]), (0, LONG[:17]))
    take(driver.mixed, (0, LONG[17:23]), (2, SHORT[9:10]))
    take(driver.mixed, (0, LONG[23:24]), (2, SHORT[10:21]))
    for i in range(14):
        work = (0, LONG[24 + i : 25 + i]), (2, SHORT[21 + i : 22 + i])
        take(driver.decode, *(work if i % 2 else work[::-1]))
    take(driver.decode, (0, LONG[38:39]))
    take(driver.decode, (0, LONG[39:40]))
    return [torch.cat(parts[0]), torch.cat(parts[2])]
