"""The mask of a request whose text has a form: what the form allows next, less what else the request excludes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ostinato.grammar_compiler import GrammarFault, TokenMatcher
from ostinato.layers.errors import OstinatoError
from ostinato.token_masks import TokenMask, Words, num_words


class GrammarMask:
    """A ``TokenMask`` that reads each token of the answer once, in order.

    Where the form can be followed no further nothing is allowed, and ``fault`` says why: the request ends with it.
    """

    follows_tokens = True

    def __init__(
        self, matcher: TokenMatcher, num_prompt_tokens: int, vocab_size: int, also: TokenMask | None = None
    ) -> None:
        """``matcher`` stands at the beginning of the answer; ``also`` restricts it further."""
        self.fault: OstinatoError | None = None
        self._matcher = matcher
        self._num_read = num_prompt_tokens
        self._num_words = num_words(vocab_size)
        self._also = also

    def words(self, token_ids: Sequence[int]) -> Words:
        """What may follow ``token_ids``, of which those read before are the beginning."""
        words = np.zeros(self._num_words, np.int32)
        if self.fault is None:
            try:
                self._read(token_ids)
                self._matcher.fill(words)
            except GrammarFault as fault:
                self.fault = fault
                words[:] = 0
        if self._also is not None and self.fault is None:
            words &= self._also.words(token_ids)
            if not words.any():
                self.fault = GrammarFault("the form of the text and what else the request excludes leave no token")
        return words

    def _read(self, token_ids: Sequence[int]) -> None:
        for token in token_ids[self._num_read :]:
            self._matcher.accept(token)
        self._num_read = len(token_ids)
