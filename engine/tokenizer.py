"""A checkpoint's tokenizer: text to token ids, ids to text (at once or as they come), messages to a prompt.

Knows the files of a checkpoint; reads them with `tokenizers` and leaves transformers to folders that hold only the slow
kind of files. Knows no model: any integer may be decoded, and one that is no token of this tokenizer has no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from ostinato.chat_template import ChatTemplate
from ostinato.layers.errors import ModelLoadError, ParamError
from ostinato.text_stream import NUM_IDS, TextStream, Vocabulary

_SLOW_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")


class Tokenizer:
    """Safe to share between threads; a `TextStream` belongs to one sequence."""

    def __init__(self, core: tokenizers.Tokenizer, chat_template: ChatTemplate | None = None) -> None:
        core.no_truncation()  # some checkpoints store their training's settings
        core.no_padding()
        self._core = core
        self._vocabulary = Vocabulary(core)
        self._whole_vocabulary = Vocabulary(core, skip_special_tokens=False)
        self._chat_template = chat_template

    @classmethod
    def load(cls, folder: Path) -> Tokenizer | None:
        """Read ``folder``'s tokenizer; None when it has no tokenizer files. Raises ModelLoadError for broken ones."""
        if (folder / "tokenizer.json").is_file():
            core = _read_fast(folder / "tokenizer.json")
        elif any((folder / name).is_file() for name in _SLOW_FILES):
            core = _convert_slow(folder)
        else:
            return None
        return cls(core, ChatTemplate.load(folder))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return ids, with the tokens that the checkpoint puts around a text (BOS, say) unless told not to."""
        if not isinstance(text, str):
            raise ParamError(f"a text to tokenize must be a str; got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ParamError(f"the text holds half of a surrogate pair at character {error.start:,}") from error
        try:
            return self._core.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # a vocabulary without a token for the unknown
            raise ParamError(f"the checkpoint's tokenizer cannot encode the text: {error}") from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ids; those that are no tokens have none, invalid UTF-8 becomes U+FFFD."""
        known = [token_id for token_id in token_ids if 0 <= token_id < NUM_IDS]
        return self._core.decode(known, skip_special_tokens=skip_special_tokens)

    def to_json(self) -> str:
        """The whole tokenizer, as a ``tokenizer.json`` holds it."""
        return str(self._core.to_str())

    def text_stream(self, prompt_token_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> TextStream:
        """Return a stream whose pieces concatenate to the text of the ids pushed, as it stands after the prompt.

        For ByteLevel tokenizers that is `decode` of the ids. Where a first token loses its leading space, it does so
        only when the prompt has no text. Special tokens have text where they are not skipped.
        """
        vocabulary = self._vocabulary if skip_special_tokens else self._whole_vocabulary
        return vocabulary.stream(prompt_token_ids)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` can work."""
        return self._chat_template is not None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt's text by the checkpoint's own template; encode it with ``add_special_tokens=False``.

        ``messages`` are mappings with a "role" and whatever the template reads; ``tools`` are JSON schemas.
        Raises ParamError when there is no template, for malformed messages, and when the template fails.
        """
        if self._chat_template is None:
            raise ParamError("the checkpoint has no chat template (chat_template.jinja, or in tokenizer_config.json)")
        return self._chat_template.render(messages, add_generation_prompt, tools)


def _read_fast(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # tokenizers raises bare Exceptions, and its panics are not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelLoadError(f"{path} is not a readable tokenizer: {error}") from error


def _convert_slow(folder: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer  # seconds to import

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelLoadError(f"{folder}: transformers cannot read the tokenizer's files: {error}") from error
    core = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(core, tokenizers.Tokenizer):
        raise ModelLoadError(
            f"{folder} has no tokenizer.json, and transformers cannot make one from a {type(loaded).__name__}; "
            "save one with PreTrainedTokenizerFast.save_pretrained"
        )
    return core
