"""From the form of a text to the tokens that may come next: llguidance, kept from harming the process.

A compiler belongs to one tokenizer and one width of logits. Compiling runs in a thread of its own, whose stack holds
the deepest recursion that the limits on sizes allow; the first mask is part of it, so that a form which cannot be
followed is refused when it is submitted. Knows no request and no device.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ostinato.layers.errors import OstinatoError, ParamError
from ostinato.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    import llguidance

MAX_CACHED = 64
"""Compiled forms that are kept."""

STACK_BYTES = 256 * 2**20
"""Of the compiling thread; 128 Ki characters of nested schema need 96 MiB (8 KiB for each level of 11 characters)."""

COMPILE_SECONDS = 20.0
"""How long a form may be compiled; the compiler's own limits end nearly all of them within two."""

MAX_MESSAGE = 300
"""Characters of what the compiler complains about."""

_SOME_WHITESPACE = {"whitespace_pattern": r"[ \t\r\n]{1,32}"}
"""Between two tokens of JSON: without a bound small models write blanks until they may write no more."""

_STACK_SIZE_LOCK = threading.Lock()


class GrammarFault(OstinatoError):
    """A form can be followed no further: too many ways at once, or a token that it does not have."""


class TokenMatcher:
    """Where one text stands in its form."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Set the bits of the tokens that may come next in ``mask [ceil(vocab / 32)] int32``, clear the others.

        Bit ``i % 32`` of word ``i // 32`` is token i. Where the text is complete, only the end of text may come.
        """
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()

    def accept(self, token_id: int) -> None:
        """The next token of the text; ``GrammarFault`` for one that may not come."""
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_over(self) -> bool:
        """Whether nothing but the end of text may come."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarFault(f"the form of the text cannot be followed: {_shortened(self._matcher.get_error())}")


class GrammarCompiler:
    """Compiles forms for one tokenizer; may be shared between threads."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        """``tokenizer_json``: the tokenizer's own file; ``vocab_size``: the width of the logits.

        ``ParamError`` without llguidance, for a tokenizer that it cannot read, and without an end-of-text token.
        """
        try:
            import llguidance
        except ImportError as error:
            raise ParamError(
                f"structured outputs need llguidance: pip install 'ostinato[structured]' ({error})"
            ) from None
        if not eos_token_ids:
            raise ParamError("structured outputs need an end-of-sequence token, and this checkpoint names none")
        self._llguidance = llguidance
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._compiled: OrderedDict[StructuredOutputsParams, llguidance.LLMatcher] = OrderedDict()
        try:
            self._tokenizer = llguidance.LLTokenizer(
                tokenizer_json, n_vocab=vocab_size, eos_token=sorted(eos_token_ids)
            )
        except Exception as error:
            raise ParamError(f"structured outputs: this checkpoint's tokenizer cannot be used: {error}") from error

    def matcher(self, params: StructuredOutputsParams) -> TokenMatcher:
        """At the beginning of a text; ``ParamError`` for a form that is none, or is too complex."""
        with self._lock:
            known = self._compiled.get(params)
            if known is not None:
                self._compiled.move_to_end(params)
        if known is None:
            known = _with_large_stack(lambda: self._compile(params))
            with self._lock:
                self._compiled[params] = known
                while len(self._compiled) > MAX_CACHED:
                    self._compiled.popitem(last=False)
        return TokenMatcher(known.deep_copy())

    def _compile(self, params: StructuredOutputsParams) -> llguidance.LLMatcher:
        try:
            grammar = self._grammar(params)
        except ValueError as error:
            raise ParamError(f"{params.kind}: {_shortened(str(error))}") from error
        matcher = self._llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        mask = np.zeros((self._vocab_size + 31) // 32, np.int32)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            raise ParamError(f"{params.kind}: {_shortened(matcher.get_error())}")
        if not mask.any():
            raise ParamError(f"{params.kind}: no token of this checkpoint can begin the text")
        return matcher

    def _grammar(self, params: StructuredOutputsParams) -> str:
        make = self._llguidance.LLMatcher
        if params.kind == "regex":
            return str(make.grammar_from_regex(params.source))
        if params.kind == "grammar":
            return str(make.grammar_from_lark(params.source))
        if params.kind == "choice":
            quoted = (json.dumps(choice, ensure_ascii=False) for choice in params.choices)
            choices = " | ".join(quoted).replace("\x7f", "\\u007f")  # the one character that has to be escaped as well
            return str(make.grammar_from_lark(f"start: {choices}"))
        overrides: Any = {"whitespace_flexible": False} if params.disable_any_whitespace else _SOME_WHITESPACE
        return str(make.grammar_from_json_schema(params.source, overrides=overrides))


def _with_large_stack(work: Callable[[], llguidance.LLMatcher]) -> llguidance.LLMatcher:
    """``work()``, in a thread with ``STACK_BYTES`` of stack: overflowing it would end the process."""
    done: list[llguidance.LLMatcher] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="ostinato-grammar", daemon=True)
    with _STACK_SIZE_LOCK:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        except RuntimeError as error:
            raise ParamError(f"structured outputs: no thread with {STACK_BYTES:,} bytes of stack: {error}") from error
        finally:
            threading.stack_size(before)
    thread.join(COMPILE_SECONDS)
    if thread.is_alive():  # nothing can end it but itself
        raise ParamError(f"structured outputs: the form is not compiled after {COMPILE_SECONDS:g} s: it is too complex")
    if failed:
        raise failed[0]
    return done[0]


def _shortened(message: str) -> str:
    """``message`` on one line, without its middle where it is long: that repeats what was given."""
    line = " ".join(message.split()) or "no reason given"
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE // 2]} … {line[-MAX_MESSAGE // 2 :]}"
