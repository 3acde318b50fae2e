"""Requests whose text has a form: against a plain loop over the reference's logits, in company, and where it fails."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from json_schemas import SCHEMAS
from ostinato import LLM, ParamError, SamplingParams, StructuredOutputsParams
from ostinato.grammar_compiler import GrammarCompiler, GrammarFault
from ostinato.models.checkpoint import DEMO_FOLDER
from ostinato.tokenizer import Tokenizer

EOS = 0
"""The demo's end of text."""
PROMPT = "def read_lines(path):"
FORMS = {
    "json": StructuredOutputsParams(
        json={
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer", "maximum": 99}},
            "required": ["name", "size"],
            "additionalProperties": False,
        },
        disable_any_whitespace=True,
    ),
    "regex": StructuredOutputsParams(regex="[A-Z][a-z]{2,5} [0-9]{3}"),
    "choice": StructuredOutputsParams(choice=["yes", "no", "perhaps, but not today"]),
    "grammar": StructuredOutputsParams(grammar='start: "def " /[a-z]{3,6}/ "(" ")" ":"'),
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", dtype="float32", execution="eager", max_num_seqs=16, max_model_len=512) as engine:
        yield engine


def asking(form: StructuredOutputsParams | None, **options: object) -> SamplingParams:
    return SamplingParams(**({"temperature": 0, "max_tokens": 60, "structured_outputs": form} | options))


def generated(llm: LLM, params: SamplingParams) -> list[int]:
    return llm.generate(PROMPT, params)[0].outputs[0].token_ids


@functools.cache
def reference() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()


def by_hand(llm: LLM, form: StructuredOutputsParams, count: int) -> list[int]:
    """Greedy, a token at a time: the reference's logits without what the form excludes."""
    tokenizer = Tokenizer.load(DEMO_FOLDER)
    assert tokenizer is not None
    width = llm.plan.spec.vocab_size
    matcher = GrammarCompiler(tokenizer.to_json(), width, {EOS}).matcher(form)
    prompt, answer = tokenizer.encode(PROMPT), []
    while len(answer) < count:
        mask = np.zeros((width + 31) // 32, np.int32)
        matcher.fill(mask)
        allowed = torch.from_numpy(np.unpackbits(mask.view(np.uint8), bitorder="little")[:width].astype(bool))
        with torch.no_grad():
            logits = reference()(torch.tensor([prompt + answer])).logits[0, -1, :width]
        answer.append(int(logits.masked_fill(~allowed, float("-inf")).argmax()))
        if answer[-1] == EOS:
            break
        matcher.accept(answer[-1])
    return answer


@pytest.mark.parametrize("name", FORMS)
def test_the_tokens_are_the_likeliest_that_the_form_allows(llm: LLM, name: str) -> None:
    assert generated(llm, asking(FORMS[name])) == by_hand(llm, FORMS[name], 60)


def test_every_text_has_its_form(llm: LLM) -> None:
    checks = {
        "json": lambda text: jsonschema.validate(json.loads(text), json.loads(FORMS["json"].source)),
        "regex": lambda text: re.fullmatch(FORMS["regex"].source, text) or pytest.fail(text),
        "choice": lambda text: text in FORMS["choice"].choices or pytest.fail(text),
        "grammar": lambda text: re.fullmatch(r"def [a-z]{3,6}\(\):", text) or pytest.fail(text),
    }
    for name, check in checks.items():
        asked = [asking(FORMS[name], temperature=1.5, seed=seed, max_tokens=200) for seed in range(8)]
        for output in llm.generate([PROMPT] * 8, asked):
            assert output.outputs[0].finish_reason == "stop"
            check(output.outputs[0].text)


def test_three_hundred_schemas_in_one_batch(llm: LLM) -> None:
    """Texts are cut short where a schema allows them to go on for ever; all others are valid."""
    forms = [StructuredOutputsParams(json=schema, disable_any_whitespace=True) for schema in SCHEMAS]
    asked = [asking(form, temperature=0.8, seed=7, max_tokens=48) for form in forms]
    ended = 0
    for schema, output in zip(SCHEMAS, llm.generate([PROMPT] * len(forms), asked), strict=True):
        completion = output.outputs[0]
        assert completion.finish_reason in ("stop", "length"), output.error
        if completion.finish_reason == "stop":
            ended += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(completion.text))
    assert ended >= 0.8 * len(forms)


def test_company_changes_nothing(llm: LLM) -> None:
    asked = [
        *(asking(form, seed=3, temperature=0.9) for form in FORMS.values()),
        *(asking(form, repetition_penalty=1.3) for form in FORMS.values()),
        asking(None),
        asking(None, seed=4, temperature=1.0, top_p=0.9),
    ]
    alone = [generated(llm, params) for params in asked]
    together = [output.outputs[0].token_ids for output in llm.generate([PROMPT] * len(asked), asked)]
    assert together == alone


def test_a_form_outlives_preemption() -> None:
    long = StructuredOutputsParams(regex="([a-z]{1,9} ){12}")
    asked = [asking(long, seed=seed, temperature=0.9) for seed in range(8)]
    with LLM("demo", dtype="float32", execution="eager", max_num_seqs=8, max_model_len=96, block_size=4) as roomy:
        expected = [output.outputs[0].token_ids for output in roomy.generate([PROMPT] * 8, asked)]
    tight = {"max_num_seqs": 8, "max_model_len": 96, "block_size": 4, "kv_cache_memory": "30 blocks"}
    with LLM("demo", dtype="float32", execution="eager", **tight) as llm:
        assert [output.outputs[0].token_ids for output in llm.generate([PROMPT] * 8, asked)] == expected
        assert llm.stats().preemptions > 0


def test_a_form_that_becomes_too_complex_ends_its_request_alone(llm: LLM) -> None:
    rules = "\n".join(["start: a0", *(f"a{n}: a{n + 1} a{n + 1}" for n in range(60)), 'a60: "x" | ""'])
    hard = asking(StructuredOutputsParams(grammar=rules), logit_bias={EOS: -100})
    asked = [hard, asking(FORMS["choice"]), hard]
    outputs = llm.generate([PROMPT] * 3, asked)
    assert [output.outputs[0].finish_reason for output in outputs] == ["error", "stop", "error"]
    assert isinstance(outputs[0].error, GrammarFault) and "max is" in str(outputs[0].error)
    assert outputs[1].outputs[0].text in FORMS["choice"].choices


def test_more_may_be_excluded_than_the_form_does(llm: LLM) -> None:
    output = llm.generate(PROMPT, asking(FORMS["choice"], bad_words=["yes", "perhaps"]))[0]
    assert output.outputs[0].text == "no"
    with pytest.raises(ParamError, match=r"regex: .*look-ahead"):
        llm.generate(PROMPT, asking(StructuredOutputsParams(regex="(?=a)b")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_eos": True}, "ignore_eos does not go with structured_outputs"),
        ({"min_tokens": 3}, "min_tokens = 3 does not go with"),
    ],
)
def test_what_does_not_go_with_a_form(options: dict[str, object], message: str) -> None:
    with pytest.raises(ParamError, match=message):
        asking(FORMS["choice"], **options)
    with pytest.raises(ParamError, match="must be a StructuredOutputsParams"):
        SamplingParams(structured_outputs={"json": {}})  # type: ignore[arg-type]
