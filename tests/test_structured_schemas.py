"""Texts that follow the masks of a JSON schema, token by token and at random, are valid by ``jsonschema``."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

from json_schemas import SCHEMAS, Schema
from ostinato.grammar_compiler import GrammarCompiler
from ostinato.structured_outputs import StructuredOutputsParams
from test_grammar_compiler import EOS, TOKENIZER, WIDTH, allowed, byte_tokenizer

AT_RANDOM = 30
"""Tokens before a text is brought to its end."""
ENDING = {TOKENIZER.token_to_id(character) for character in ',]}"x@.com0123456789Zeflasrun'}
QUOTE = TOKENIZER.token_to_id('"')


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer(), WIDTH, {EOS})


def written(compiler: GrammarCompiler, params: StructuredOutputsParams, draw: random.Random) -> str:
    matcher, tokens = compiler.matcher(params), []
    while (following := allowed(matcher)) != {EOS}:
        assert following, "a text that can neither go on nor end"
        if EOS in following and (len(tokens) > AT_RANDOM or draw.random() < 0.5):
            break
        following.discard(EOS)
        if len(tokens) > AT_RANDOM:
            following = {QUOTE} & following or ENDING & following or following
        tokens.append(draw.choice(sorted(following)))
        matcher.accept(tokens[-1])
        assert len(tokens) < 2_000
    return TOKENIZER.decode(tokens)


def test_there_are_three_hundred_different_ones() -> None:
    assert len({json.dumps(schema) for schema in SCHEMAS}) >= 300


@pytest.mark.parametrize("first", range(10))
def test_every_text_is_valid(compiler: GrammarCompiler, first: int) -> None:
    for number, schema in enumerate(SCHEMAS[first::10]):
        for seed in range(3):
            params = StructuredOutputsParams(json=schema, disable_any_whitespace=seed > 0)
            check(schema, written(compiler, params, random.Random(1000 * number + seed)))


def check(schema: Schema, text: str) -> None:
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        pytest.fail(f"{json.dumps(schema)}: {text!r}: {error}")
