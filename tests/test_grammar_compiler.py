"""What may come next in a text of a given form: against a plain search over all texts, and for hostile forms."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from hostile_forms import FORMS
from ostinato.grammar_compiler import GrammarCompiler, GrammarFault, TokenMatcher
from ostinato.layers.errors import ParamError
from ostinato.structured_outputs import StructuredOutputsParams

BYTES = 256
EOS = 256
WIDTH = 300
"""Wider than the tokenizer, as logits are."""


def byte_tokenizer() -> str:
    """A token for each byte, and an end of text."""
    vocab = {character: token for token, character in enumerate(sorted(ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<eos>"])
    return str(core.to_str())


TOKENIZER = Tokenizer.from_str(byte_tokenizer())


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer(), WIDTH, {EOS})


def allowed(matcher: TokenMatcher) -> set[int]:
    mask = np.zeros((WIDTH + 31) // 32, np.int32)
    matcher.fill(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def texts(compiler: GrammarCompiler, params: StructuredOutputsParams, most: int) -> set[str]:
    """All complete texts of up to ``most`` bytes."""
    found: set[str] = set()

    def follow(tokens: list[int]) -> None:
        matcher = compiler.matcher(params)
        for token in tokens:
            matcher.accept(token)
        following = allowed(matcher)
        assert max(following) <= EOS
        assert (EOS in following) == matcher.is_complete
        if EOS in following:
            found.add(TOKENIZER.decode(tokens))
        for token in following - {EOS} if len(tokens) < most else ():
            follow([*tokens, token])

    follow([])
    return found


@pytest.mark.parametrize("regex", ["a|bc", "(ab)*", "[ab]{2}c?", "a[b-d]?"])
def test_a_regex_allows_what_fully_matches(compiler: GrammarCompiler, regex: str) -> None:
    alphabet = "abcd"
    found = {text for text in texts(compiler, StructuredOutputsParams(regex=regex), 3) if set(text) <= set(alphabet)}
    every = ("".join(letters) for size in range(4) for letters in itertools.product(alphabet, repeat=size))
    assert found == {text for text in every if re.fullmatch(regex, text)}


def test_a_choice_is_one_of_them_letter_by_letter(compiler: GrammarCompiler) -> None:
    choices = ['say "no"', "yes", "yes, é\n\t\\n", "\x00", "<eos>", "日本"]
    assert texts(compiler, StructuredOutputsParams(choice=choices), 16) == set(choices)


def test_a_schema_without_whitespace(compiler: GrammarCompiler) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, None]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    params = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    assert texts(compiler, params, 12) == {'{"a":1}', '{"a":null}'}
    assert StructuredOutputsParams(json=json.dumps(schema), disable_any_whitespace=True) == params


def test_a_grammar_in_larks_notation(compiler: GrammarCompiler) -> None:
    assert texts(compiler, StructuredOutputsParams(grammar='start: "x" start "y" | "z"'), 5) == {"z", "xzy", "xxzyy"}


def test_a_text_that_is_over_has_no_next_token(compiler: GrammarCompiler) -> None:
    matcher = compiler.matcher(StructuredOutputsParams(regex="a"))
    assert not matcher.is_complete
    matcher.accept(TOKENIZER.encode("a").ids[0])
    assert matcher.is_complete and matcher.is_over and allowed(matcher) == {EOS}
    with pytest.raises(GrammarFault, match="cannot be followed"):
        matcher.accept(TOKENIZER.encode("b").ids[0])


def test_texts_of_one_form_do_not_share_where_they_stand(compiler: GrammarCompiler) -> None:
    params = StructuredOutputsParams(regex="ab")
    one, other = compiler.matcher(params), compiler.matcher(params)
    one.accept(TOKENIZER.encode("a").ids[0])
    assert allowed(one) == set(TOKENIZER.encode("b").ids) and allowed(other) == set(TOKENIZER.encode("a").ids)


REFUSED: dict[str, Callable[[], StructuredOutputsParams]] = {
    "exactly one of .*; got none": lambda: StructuredOutputsParams(),
    "got regex and json_object": lambda: StructuredOutputsParams(regex="a", json_object=True),
    "regex must be a string.*got 3": lambda: StructuredOutputsParams(regex=3),  # type: ignore[arg-type]
    "regex may have 16,384 characters, got 16,385": lambda: StructuredOutputsParams(regex="a" * 16_385),
    "regex holds half": lambda: StructuredOutputsParams(regex="\ud800"),
    "json is no JSON": lambda: StructuredOutputsParams(json="{"),
    "json must be a JSON schema, an object or a boolean": lambda: StructuredOutputsParams(json="[1]"),
    "json cannot be written as JSON: TypeError": lambda: StructuredOutputsParams(json={"enum": [object()]}),
    "json cannot be written as JSON: ValueError": lambda: StructuredOutputsParams(json={"const": float("nan")}),
    "json may have 131,072 characters": lambda: StructuredOutputsParams(json={"const": "a" * 131_072}),
    "choice must have 1 to 1,000 items, got 0": lambda: StructuredOutputsParams(choice=[]),
    "choice must be a list": lambda: StructuredOutputsParams(choice="yes"),
    "an item is 1 to 1,000 characters, got ''": lambda: StructuredOutputsParams(choice=[""]),
    "json: 17 patterns and formats in a schema that combines some": lambda: StructuredOutputsParams(
        json={"allOf": [{"pattern": f"a{number}"} for number in range(17)]}
    ),
    "grammar: 17 times &": lambda: StructuredOutputsParams(grammar="start: A\nA: " + " & ".join(["/a/"] * 18)),
    "disable_any_whitespace is about JSON": lambda: StructuredOutputsParams(regex="a", disable_any_whitespace=True),
    "json_object must be True or False": lambda: StructuredOutputsParams(json_object=1),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_form_that_is_none_is_refused(message: str) -> None:
    with pytest.raises(ParamError, match=message):
        REFUSED[message]()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (StructuredOutputsParams(regex="(?=a)b"), "regex: .*look-ahead"),
        (StructuredOutputsParams(regex="[a-z]*" * 2_000 + "("), r"regex: at 1.* … .*\]\*\("),
        (StructuredOutputsParams(grammar="start: nope"), 'grammar: .*unknown name: "nope"'),
        (StructuredOutputsParams(json={"type": "integer", "multipleOf": 982451653}), "json: fuel exhausted"),
        (StructuredOutputsParams(json={"$ref": "#"}), "json: "),
        (StructuredOutputsParams(json={"type": "string", "minLength": 2, "maxLength": 1}), "json: "),
        (StructuredOutputsParams(json={"unknownKeyword": 1, "not": {}}), "json: "),
    ],
)
def test_what_cannot_be_followed_is_refused_at_once(
    compiler: GrammarCompiler, params: StructuredOutputsParams, message: str
) -> None:
    with pytest.raises(ParamError, match=message):
        compiler.matcher(params)


COMPILE_ALL = """
import sys
from hostile_forms import FORMS
from ostinato.grammar_compiler import GrammarCompiler
from ostinato.layers.errors import ParamError

compiler = GrammarCompiler(sys.stdin.read(), 300, {256})
for make in FORMS.values():
    try:
        compiler.matcher(make())
        print("compiled")
    except ParamError:
        print("refused")
"""


def test_hostile_forms_do_not_end_the_process() -> None:
    """A stack that overflows in compiled code ends the process, so this is another one."""
    command = [sys.executable, "-c", COMPILE_ALL]
    ran = subprocess.run(
        command,
        input=byte_tokenizer(),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        timeout=120,
    )
    assert (ran.returncode, len(ran.stdout.split())) == (0, len(FORMS)), ran.stdout + ran.stderr


def test_a_compiler_says_what_it_needs() -> None:
    with pytest.raises(ParamError, match="this checkpoint names none"):
        GrammarCompiler(byte_tokenizer(), WIDTH, set())
    with pytest.raises(ParamError, match="tokenizer cannot be used"):
        GrammarCompiler("{}", WIDTH, {EOS})
