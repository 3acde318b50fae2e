"""Tokenizers of the kinds that checkpoints have, small enough to build in a test."""

from __future__ import annotations

from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["def read_lines(path):\n    return path.read_text()", "äöü ß 日本語 の", "🙂🙃 ok", "User: hello hello world"]


@cache
def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2, Qwen and Llama 3: BPE over bytes, each of the 256 a token."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    core.add_tokens([AddedToken("<tool call>", normalized=False)])  # not special; a space is no byte character
    core.add_special_tokens(["<|user|>"])
    return core


@cache
def sentencepiece() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral: "▁" for spaces, a space put before the text and taken away again, byte fallback."""
    words = ["▁", "▁a", "▁b", "a", "b", "ab", "▁hello", "lo", ".", "▁▁", "ß", "\ufffd"]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(word, -2.0 - 0.1 * n) for n, word in enumerate(words)]
    core = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


@cache
def metaspace() -> tokenizers.Tokenizer:
    """As T5 and many Unigram models: the decoder drops the first token's "▁"."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁a", -2.1), ("b", -2.2), ("▁b", -2.3), ("ä", -2.4)]
    core = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.add_special_tokens(["</s>"])
    return core


@cache
def word_piece() -> tokenizers.Tokenizer:
    """As BERT: "##" joins a token to the one before."""
    words = ["[UNK]", "[SEP]", "a", "##b", "hello", "##lo", ".", "don", "'", "t"]
    core = tokenizers.Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.add_special_tokens(["[SEP]"])
    return core


@cache
def without_decoder() -> tokenizers.Tokenizer:
    """Words and nothing else: decoding joins them by spaces."""
    core = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "ä": 2, "<unk>": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return core


def byte_tokens(text: bytes) -> list[int]:
    """One token for each byte, in the `byte_level` tokenizer."""
    return [_id_of_byte(byte) for byte in text]


@cache
def _id_of_byte(byte: int) -> int:
    """By GPT-2's alphabet: printable bytes are themselves, the others the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [other for other in range(256) if other not in printable]
    token_id = byte_level().token_to_id(chr(byte if byte in printable else 0x100 + others.index(byte)))
    assert token_id is not None
    return token_id
