"""Edits and logprobs beside our sampling kernels, in Triton's interpreter: the tokens of the passes."""

from __future__ import annotations

from typing import Any

import pytest

from edit_reference import generated, of_variant
from engines import engine, prompts, token_ids
from ostinato import SamplingParams
from ostinato.outputs import RequestOutput

pytestmark = pytest.mark.kernels

TOKENS = 6
ASKED = [
    SamplingParams(temperature=0, max_tokens=TOKENS, repetition_penalty=1.9, logit_bias={111: 4.0}),
    SamplingParams(temperature=0.9, seed=3, top_p=0.8, frequency_penalty=2.0, max_tokens=TOKENS, logprobs=2),
    SamplingParams(temperature=1.2, seed=4, allowed_token_ids=[1, 31, 32, 111], max_tokens=TOKENS),
    SamplingParams(temperature=0, max_tokens=TOKENS),
]


@pytest.mark.parametrize("execution", ["eager", "emulate"])
def test_edited_rows_beside_the_kernels_give_the_tokens_of_the_reference(execution: str) -> None:
    wanted = prompts(4, seed=3)

    def run(**options: Any) -> list[RequestOutput]:
        with engine("qwen3", capture_sizes=[1, 4], **options) as llm:
            outputs = llm.generate(wanted, ASKED)
            assert llm.stats().compiles_after_warmup == 0
            return outputs

    by_kernels = run(execution=execution, attention_backend="triton")
    logits = of_variant("qwen3")
    want = [generated(logits, prompt, params, params.seed or 0) for prompt, params in zip(wanted, ASKED, strict=True)]
    assert token_ids(by_kernels) == want
    ours, theirs = by_kernels[1].outputs[0], run()[1].outputs[0]
    assert ours.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=1e-3)
