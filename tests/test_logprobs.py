"""Log-probabilities of answers and prompts against log-softmax of transformers' logits, whatever is done to these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deferred_stream import DeferredStream
from engines import checkpoint, engine, preempt_before_each_step, prompts, reference_logits, token_ids
from ostinato import LLM, EngineConfig, Logprob, ParamError, SamplingParams
from ostinato.core import EngineCore
from ostinato.layers.logprobs import probe
from ostinato.load import load_decoder
from ostinato.models.checkpoint import read_config
from ostinato.output_processor import OutputProcessor
from ostinato.outputs import Logprobs, RequestOutput
from ostinato.request import Request
from ostinato.runner import StepRunner

VARIANT = "qwen3"
TOKENS = 6
LOUD: dict[str, Any] = {"temperature": 1.5, "seed": 3, "top_p": 0.9, "repetition_penalty": 2.0, "logit_bias": {7: 20}}


def reference(tokens: list[int]) -> Tensor:
    """``[tokens, vocab]``: of what follows each of them."""
    return reference_logits(VARIANT, tokens).log_softmax(-1)


def check_entry(entry: Logprobs, logprobs: Tensor, token: int, most: int) -> None:
    """``entry`` names ``token`` first, then the ``most`` likeliest, and gives each its rank."""
    top = logprobs.topk(most)
    assert next(iter(entry)) == token
    assert set(entry) == {token, *top.indices.tolist()}
    for named, value in entry.items():
        assert value.logprob == pytest.approx(float(logprobs[named]), abs=2e-4)
        assert value.rank == int((logprobs >= logprobs[named]).sum())


def check(output: RequestOutput, params: SamplingParams) -> None:
    (completion,) = output.outputs
    prompt, answer = output.prompt_token_ids, completion.token_ids
    logprobs = reference([*prompt, *answer])
    if params.logprobs is None:
        assert completion.logprobs is completion.cumulative_logprob is None
    else:
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(answer)
        for place, (token, entry) in enumerate(zip(answer, completion.logprobs, strict=True)):
            check_entry(entry, logprobs[len(prompt) - 1 + place], token, params.logprobs)
        total = sum(entry[token].logprob for token, entry in zip(answer, completion.logprobs, strict=True))
        assert completion.cumulative_logprob == pytest.approx(total)
    if params.prompt_logprobs is None:
        assert output.prompt_logprobs is None
    else:
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(prompt)
        assert output.prompt_logprobs[0] is None
        for place, entry in enumerate(output.prompt_logprobs[1:], 1):
            assert entry is not None
            check_entry(entry, logprobs[place - 1], prompt[place], params.prompt_logprobs)


def asked() -> list[SamplingParams]:
    wanted: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": 3},
        {"logprobs": 0, **LOUD},
        {"temperature": 0, "prompt_logprobs": 2},
        {"logprobs": 20, "prompt_logprobs": 0, **LOUD},
        {"temperature": 0},
    ]
    return [SamplingParams(max_tokens=TOKENS, **options) for options in wanted]


@pytest.mark.parametrize(
    "options",
    [{}, {"execution": "emulate", "prefill_capture_sizes": [64]}, {"max_num_batched_tokens": 5}, {"max_num_seqs": 1}],
    ids=str,
)
def test_logprobs_are_those_of_the_raw_distribution(options: dict[str, Any]) -> None:
    wanted = prompts(5, seed=3)
    with engine(VARIANT, **options) as llm:
        outputs = llm.generate(wanted, asked())
        again = llm.generate(wanted, [replace(params, logprobs=None, prompt_logprobs=None) for params in asked()])
    for output, params in zip(outputs, asked(), strict=True):
        check(output, params)
    assert token_ids(again) == token_ids(outputs), "asking for logprobs changes no token"


def test_preempted_requests_are_told_of_every_token_once() -> None:
    with engine(VARIANT) as llm:
        preempt_before_each_step(llm)
        for output, params in zip(llm.generate(prompts(5, seed=3), asked()), asked(), strict=True):
            check(output, params)
        assert llm.stats().preemptions >= 5


def test_a_prompt_with_logprobs_is_computed_whole_and_others_may_share_it() -> None:
    (prompt,) = ([list(range(20, 41))],)
    plain, probing = SamplingParams(temperature=0, max_tokens=2), SamplingParams(max_tokens=2, prompt_logprobs=1)
    with engine(VARIANT) as llm:
        first = llm.generate(prompt, probing)[0]
        assert llm.generate(prompt, plain)[0].num_cached_tokens == 20
        second = llm.generate(prompt, probing)[0]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 0)
    assert second.prompt_logprobs == first.prompt_logprobs


def test_a_stream_tells_each_tokens_logprob_with_the_token() -> None:
    params = SamplingParams(max_tokens=TOKENS, logprobs=2, **LOUD)
    with engine(VARIANT) as llm:
        (whole,) = llm.generate([[5, 6, 7]], params)
        deltas = list(llm.stream([5, 6, 7], params))
    assert [entry for delta in deltas for entry in delta.logprobs or []] == whole.outputs[0].logprobs
    assert all(len(delta.logprobs or []) == len(delta.token_ids) for delta in deltas)


def test_tokens_of_logprobs_have_their_text() -> None:
    with LLM("demo", device="cpu", execution="eager", max_model_len=64) as llm:
        assert llm.tokenizer is not None
        (output,) = llm.generate(
            "import os", SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=0)
        )
        entries = [*(output.outputs[0].logprobs or []), *(entry for entry in output.prompt_logprobs or [] if entry)]
        assert len(entries) == 3 + len(output.prompt_token_ids) - 1
        for token, value in ((token, value) for entry in entries for token, value in entry.items()):
            assert isinstance(value, Logprob)
            assert value.decoded_token == llm.tokenizer.decode([token], skip_special_tokens=False)


@pytest.mark.parametrize("seed", range(3))
def test_logprobs_of_steps_in_flight_are_not_mixed_up(seed: int) -> None:
    """Two steps share the static results, and the host reads them when both were launched."""
    folder = checkpoint(VARIANT)[0]
    options: dict[str, Any] = {"execution": "emulate", "max_model_len": 128, "block_size": 4, "max_num_seqs": 4}
    config = EngineConfig(folder, device="cpu", capture_sizes=[1, 4], prefill_capture_sizes=[64], debug=True, **options)
    plan = replace(config.resolve(), num_blocks=40)
    stream = DeferredStream(seed, eagerness=(0.2, 0.6, 0.7)[seed], emulate=seed == 0)
    runner = StepRunner(plan, load_decoder(plan, read_config(folder), lambda *_: None), stream)
    runner.warm_up()
    core = EngineCore(plan, runner)
    outputs = []
    for number, (prompt, params) in enumerate(zip(prompts(5, seed=3), asked(), strict=True)):
        request = Request(number, prompt, params, params.seed or 0)
        outputs.append((OutputProcessor(None, request, None), request))
        core.add(request, outputs[-1][0])
        core.step()
    while any(core.is_live(request) for _, request in outputs):
        core.step()
    assert stream.lag >= 2
    for processor, request in outputs:
        check(processor.output(), request.params)
    assert core.stats().steps_without_graph.get("prompt_logprobs", 0) > 0


def test_the_likeliest_of_a_small_vocabulary_are_all_of_it() -> None:
    probes = probe(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([2]), 20)
    assert probes.top_ids.sort().values.tolist() == [[0, 1, 2]]
    assert probes.rank.tolist() == [2]  # of equals, all count
    assert probes.top_logprobs.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("value", [21, -1, True, "5"])
def test_more_than_the_limit_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ParamError, match=f"^{name} must be"):
        SamplingParams(**{name: value})
