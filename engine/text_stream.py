"""Text from token ids as they come: the pieces of a stream concatenate to the text of all its ids decoded at once.

Knows how decoders treat a token by its neighbours: characters split over tokens, ``<0x..>`` byte tokens, a leading
space that exists only after other text. Knows no request and no stop string.

`tokenizers.decoders.DecodeStream` does not promise that equality: it has no flush, it raises when a byte token spoils a
run that it has already shown, it shows the prompt again when that ends in half a character, and it holds invalid bytes
back until a valid character follows them. ``tests/test_tokenizer.py`` shows each of the four.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Protocol

import tokenizers

REPLACEMENT = "\ufffd"
NUM_IDS = 1 << 32  # tokenizers takes ids as unsigned 32-bit integers, and raises on others


class TextStream(Protocol):
    """The text of one sequence of generated ids. Ids that show no text (special, unknown) may be pushed too."""

    def push(self, token_id: int) -> str:
        """Text that no later id can change any more; often one token's, sometimes ""."""

    def flush(self) -> str:
        """The rest, as if no further id came: an incomplete character becomes U+FFFD."""


class Vocabulary:
    """What a tokenizer's ids are to its decoder; made once per tokenizer and shared by its streams."""

    def __init__(self, core: tokenizers.Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self.core = core
        decoder = _decoder_config(core)
        self.is_byte_level = decoder.get("type") == "ByteLevel"
        self.splits_characters = "ByteLevel" in json.dumps(decoder)
        self.byte_ids = _byte_token_ids(core) if "ByteFallback" in json.dumps(decoder) else frozenset[int]()
        added = core.get_added_tokens_decoder().values() if skip_special_tokens else ()
        self._special = frozenset(token.content for token in added if token.special)
        self._bytes: dict[int, bytes] = {}

    def shows(self, token_id: int) -> bool:
        """Whether the id has text: known to the tokenizer, and no special token that is skipped."""
        token = self.core.id_to_token(token_id) if 0 <= token_id < NUM_IDS else None
        return token is not None and token not in self._special

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids that all pass `shows`."""
        return self.core.decode(token_ids, skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token under a ByteLevel decoder; b"" for an id that shows no text."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._decode_bytes(token_id)
        return known

    def _decode_bytes(self, token_id: int) -> bytes:
        if not self.shows(token_id):
            return b""
        token = self.core.id_to_token(token_id) or ""
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        except KeyError:  # an added token that holds plain text: the decoder takes it as it is
            return token.encode()

    def stream(self, prompt_token_ids: Sequence[int]) -> TextStream:
        """A new stream; of the prompt only matters that text stands before the first generated id."""
        if self.is_byte_level:
            return ByteStream(self)
        return WindowStream(self, self._context(prompt_token_ids))

    def _context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The prompt's last ids that decode to finished text. Byte tokens are left out: the answer's own may follow."""
        context: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if token_id not in self.byte_ids and self.shows(token_id):
                context.insert(0, token_id)
                text = self.decode(context)
                if text and not text.endswith(REPLACEMENT):
                    return context
        return [] if self.splits_characters else context


class ByteStream:
    """For ByteLevel decoders, under which a text is the UTF-8 of its tokens' bytes, whatever stands before it.

    Python's incremental decoder and Rust's ``from_utf8_lossy`` replace the same invalid bytes (the Unicode standard's
    "maximal subparts"), so at most three bytes are ever held back.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._token_bytes = vocabulary.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """See `TextStream.push`."""
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """See `TextStream.flush`."""
        return self._utf8.decode(b"", final=True)


class WindowStream:
    """For any other decoder: decodes a short window of ids, and shows what that has more than the last time.

    ``window[:num_shown]`` has been shown: it is the context in which the rest is decoded, and its text is ``shown``;
    ``window[num_shown:]`` is held. A run of byte tokens is held until another token ends it, because one invalid byte
    turns every byte of its run into U+FFFD, those before it too.
    """

    def __init__(self, vocabulary: Vocabulary, context: list[int]) -> None:
        self._vocabulary = vocabulary
        self._move(context)

    def _move(self, shown_ids: list[int]) -> None:
        self._window = shown_ids
        self._num_shown = len(shown_ids)
        self._shown = self._vocabulary.decode(shown_ids)

    def push(self, token_id: int) -> str:
        """See `TextStream.push`."""
        vocabulary = self._vocabulary
        if not vocabulary.shows(token_id):
            return ""
        self._window.append(token_id)
        return "" if token_id in vocabulary.byte_ids else self._show(hold=vocabulary.splits_characters)

    def flush(self) -> str:
        """See `TextStream.flush`."""
        return self._show(hold=False)

    def _show(self, hold: bool) -> str:
        text = self._vocabulary.decode(self._window)
        if len(text) <= len(self._shown) or (hold and text.endswith(REPLACEMENT)):
            return ""
        new = text[len(self._shown) :]
        self._move(self._window[self._num_shown :])
        return new


def _decoder_config(core: tokenizers.Tokenizer) -> dict[str, object]:
    """The decoder as tokenizer.json has it; {} for none (tokens are then joined by spaces)."""
    state = core.decoder.__getstate__() if core.decoder is not None else b"{}"
    config = json.loads(state)
    return config if isinstance(config, dict) else {}


def _byte_token_ids(core: tokenizers.Tokenizer) -> frozenset[int]:
    names = [template % byte for byte in range(256) for template in ("<0x%02X>", "<0x%02x>")]
    return frozenset(i for i in map(core.token_to_id, names) if i is not None)


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
