"""Which tokens a request may draw next, as packed bits: computed on the host, read by the step.

``Request.mask`` is a ``TokenMask``. One that ``follows_tokens`` is asked anew before every step of its request, which
then is not launched before all tokens of the request have arrived. Here are the masks of ``allowed_token_ids`` and
``bad_words``; that of a text's form is in ``grammar_mask``. Knows no device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ostinato.layers.errors import OstinatoError

Words = NDArray[np.int32]
"""``[ceil(vocab / 32)]``: bit ``t % 32`` of word ``t // 32`` says that token t may be drawn; surplus bits are 1."""


class TokenMask(Protocol):
    """What one request may draw."""

    @property
    def follows_tokens(self) -> bool:
        """Whether it depends on the tokens so far; else ``words`` is asked once for each admission."""

    @property
    def fault(self) -> OstinatoError | None:
        """Why it allows nothing, where it does not."""

    def words(self, token_ids: Sequence[int]) -> Words:
        """What may follow ``token_ids``, prompt and answer. Not changed by the caller."""


def num_words(vocab_size: int) -> int:
    """Words of 32 bits for so many tokens."""
    return -(-vocab_size // 32)


def pack(allowed: NDArray[np.bool_]) -> Words:
    """One bool per token as words."""
    padded = np.ones(32 * num_words(len(allowed)), np.bool_)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view("<i4").astype(np.int32, copy=False)


class ListedTokens:
    """The mask of ``allowed_token_ids`` (None: all) without ``bad_words``, each a sequence of tokens, none empty."""

    fault = None

    def __init__(
        self, vocab_size: int, allowed: Iterable[int] | None = None, bad_words: Iterable[Sequence[int]] = ()
    ) -> None:
        bits = np.full(vocab_size, allowed is None)
        bits[list(allowed or ())] = True
        words = [tuple(word) for word in bad_words]
        bits[[word[0] for word in words if len(word) == 1]] = False
        self.any_allowed = bool(bits.any())
        self._always = pack(bits)
        self._sequences = [(word[:-1], word[-1]) for word in dict.fromkeys(words) if len(word) > 1]

    @property
    def follows_tokens(self) -> bool:
        """Whether any bad word has several tokens."""
        return bool(self._sequences)

    def words(self, token_ids: Sequence[int]) -> Words:
        """What is listed, less the last token of every bad word of which all others stand at the end."""
        ended = [last for start, last in self._sequences if tuple(token_ids[-len(start) :]) == start]
        if not ended:
            return self._always
        words = self._always.copy()
        for token in ended:
            words[token >> 5] &= ~np.int32(np.uint32(1 << (token & 31)).view(np.int32))
        return words
