"""From ``bad_words`` to the sequences of tokens that spell them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ostinato.layers.errors import ParamError
from ostinato.param_checks import show
from ostinato.tokenizer import Tokenizer


def token_sequences(tokenizer: Tokenizer | None, words: Sequence[str], vocab_size: int) -> list[tuple[int, ...]]:
    """Each word as it is and after a space, which most tokenizers make another token; ``ParamError`` if there is none.

    A sequence with a token that the model cannot draw is left out.
    """
    if words and tokenizer is None:
        raise ParamError("bad_words: this checkpoint has no tokenizer, so there are no words")
    spelt = [sequence for word in words for sequence in _forms(tokenizer, word)] if tokenizer is not None else []
    return [sequence for sequence in dict.fromkeys(spelt) if max(sequence) < vocab_size]


def _forms(tokenizer: Tokenizer, word: str) -> Iterable[tuple[int, ...]]:
    bare = word.lstrip(" ")
    forms = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (bare, f" {bare}") if bare]
    if not all(forms) or not forms:
        raise ParamError(f"bad_words: {show(word)} has no tokens")
    return forms
