"""Biases, penalties and masks through whole engines: the tokens of a loop over transformers' model and processors."""

from __future__ import annotations

import functools
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deferred_stream import DeferredStream
from edit_reference import generated, of_variant
from engines import checkpoint, engine, preempt_before_each_step, prompts, token_ids
from ostinato import LLM, EngineConfig, ParamError, SamplingParams
from ostinato.core import EngineCore
from ostinato.load import load_decoder
from ostinato.models.checkpoint import read_config
from ostinato.models.step_inputs import Sampling
from ostinato.output_processor import OutputProcessor
from ostinato.request import Request
from ostinato.runner import StepRunner
from ostinato.token_masks import ListedTokens
from small_tokenizers import byte_level
from tiny_checkpoints import build

VARIANT, VOCABULARY = "qwen3", 112
LOGITS = of_variant(VARIANT)
TOKENS = 8
ALONE: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "a reward for repetition": {"repetition_penalty": 0.6},
    "presence_penalty": {"presence_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "logit_bias": {"logit_bias": {3: 100, VOCABULARY - 1: 6.5, 0: -100}},
    "allowed_token_ids": {"allowed_token_ids": [VOCABULARY - 1, 3, 32, 31, 64]},
}


def random_params(draw: random.Random) -> SamplingParams:
    """Some edits, some filters, or none of either; greedy every third time."""
    chosen: dict[str, Any] = {"max_tokens": TOKENS, "seed": draw.randrange(1 << 32)}
    chosen["temperature"] = draw.choice([0.0, 0.8, 1.3])
    for options in ALONE.values():
        chosen |= options if draw.random() < 0.25 else {}
    if draw.random() < 0.5:
        chosen |= {"top_k": draw.choice([0, 7]), "top_p": draw.choice([0.6, 0.95]), "min_p": draw.choice([0.0, 0.05])}
    return SamplingParams(**chosen)


@functools.cache
def crowd() -> tuple[list[list[int]], list[SamplingParams], list[list[int]]]:
    """Six requests of every kind, and what each must generate."""
    draw = random.Random(5)
    asked = [random_params(draw) for _ in range(6)]
    wanted = prompts(6, seed=11)
    want = [generated(LOGITS, prompt, params, params.seed or 0) for prompt, params in zip(wanted, asked, strict=True)]
    return wanted, asked, want


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_each_edit_alone_gives_the_tokens_of_the_reference(options: dict[str, Any], temperature: float) -> None:
    wanted = prompts(2, seed=2)
    params = SamplingParams(temperature=temperature, seed=8, max_tokens=16, **options)
    want = [generated(LOGITS, prompt, params, 8) for prompt in wanted]
    plain = [generated(LOGITS, prompt, SamplingParams(temperature=temperature, max_tokens=16), 8) for prompt in wanted]
    assert want != plain, "the edit changes nothing here: the test could not fail"
    with engine(VARIANT) as llm:
        assert token_ids(llm.generate(wanted, params)) == want


@pytest.mark.parametrize(
    "options",
    [{}, {"execution": "emulate"}, {"execution": "graph"}, {"max_num_batched_tokens": 5}, {"max_num_seqs": 1}],
    ids=str,
)
def test_a_mixed_batch_gives_each_request_what_it_gets_alone(options: dict[str, Any]) -> None:
    wanted, asked, want = crowd()
    with engine(VARIANT, **options) as llm:
        assert token_ids(llm.generate(wanted, asked)) == want
        assert llm.stats().compiles_after_warmup == 0
        assert llm.stats().launches_held_back == 0


def test_penalties_survive_preemption_at_every_step() -> None:
    wanted, asked, want = crowd()
    with engine(VARIANT) as llm:
        preempt_before_each_step(llm)
        assert token_ids(llm.generate(wanted, asked)) == want
        assert llm.stats().preemptions > 12


def test_a_slot_passes_nothing_on_to_its_next_owner() -> None:
    (prompt,) = prompts(1, seed=4)
    loud = SamplingParams(temperature=0, max_tokens=6, presence_penalty=2, logit_bias={5: 90}, allowed_token_ids=[5, 6])
    mild = SamplingParams(temperature=0, max_tokens=6, presence_penalty=1e-9)
    with engine(VARIANT, max_num_seqs=1) as llm:
        outputs = llm.generate([prompt] * 3, [mild, loud, mild])
    assert token_ids(outputs) == [generated(LOGITS, prompt, params) for params in (mild, loud, mild)]


def test_plain_steps_do_no_editing_work() -> None:
    """Nor do steps do more than their rows ask for."""
    asked = {
        Sampling.GREEDY: {"temperature": 0},
        Sampling.DRAWN: {"temperature": 1},
        Sampling.FILTERED: {"temperature": 1, "top_p": 0.5},
        Sampling.EDITED_GREEDY: {"temperature": 0, "presence_penalty": 1},
        Sampling.EDITED: {"temperature": 1, "logit_bias": {3: 1}},
    }
    with engine(VARIANT) as llm:
        seen: list[Sampling] = []
        model = type(llm._core.runner.open_model)
        decode = model.decode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "decode", lambda *args: seen.append(args[4]) or decode(*args))  # type: ignore[func-returns-value]
            for params in asked.values():
                llm.generate([[1, 2]], SamplingParams(max_tokens=2, **params))
    assert seen == list(asked)


# A device that lags behind.


def lagging_core(seed: int, *, emulate: bool = True) -> tuple[EngineCore, DeferredStream]:
    folder = checkpoint(VARIANT)[0]
    options: dict[str, Any] = {"execution": "emulate", "max_model_len": 128, "block_size": 4, "max_num_seqs": 4}
    config = EngineConfig(folder, device="cpu", capture_sizes=[1, 4], prefill_capture_sizes=[32], debug=True, **options)
    plan = replace(config.resolve(), num_blocks=40)
    stream = DeferredStream(seed, eagerness=0.2, emulate=emulate)
    runner = StepRunner(plan, load_decoder(plan, read_config(folder), lambda *_: None), stream)
    runner.warm_up()
    return EngineCore(plan, runner), stream


def run(core: EngineCore, requests: list[Request]) -> list[list[int]]:
    """Submitted a step apart, all run to their end."""
    for request in requests:
        core.add(request, OutputProcessor(None, request, None))
        core.step()
    while any(core.is_live(request) for request in requests):
        core.step()
        core.scheduler.check()
    return [request.output_token_ids for request in requests]


def mask_of(params: SamplingParams, bad_ids: list[list[int]] | None = None) -> ListedTokens | None:
    if params.allowed_token_ids is None and not bad_ids:
        return None
    return ListedTokens(VOCABULARY, params.allowed_token_ids, bad_ids or [])


@pytest.mark.parametrize("seed", range(3))
def test_steps_are_launched_ahead_of_tokens_that_are_penalised(seed: int) -> None:
    """What the step after next penalises was not seen by the host when it was launched."""
    wanted, asked, want = crowd()
    core, stream = lagging_core(seed, emulate=seed == 0)
    requests = [
        Request(n, prompt, params, params.seed or 0, frozenset(), mask_of(params))
        for n, (prompt, params) in enumerate(zip(wanted, asked, strict=True))
    ]
    assert run(core, requests) == want
    assert stream.lag >= 2
    assert core.stats().launches_held_back == 0


def test_words_of_several_tokens_wait_for_the_host_and_are_never_drawn() -> None:
    wanted = prompts(3, seed=6)
    plain = SamplingParams(temperature=0, max_tokens=TOKENS)
    free = [generated(LOGITS, prompt, plain) for prompt in wanted]
    bad = [[*free[0][2:4]], [*free[1][1:4]], [free[0][-1]]]
    core, stream = lagging_core(7)
    requests = [Request(n, prompt, plain, 0, frozenset(), mask_of(plain, bad)) for n, prompt in enumerate(wanted[:2])]
    requests.append(Request(2, wanted[2], plain))
    got = run(core, requests)
    assert got == [generated(LOGITS, prompt, plain, bad_ids=bad) for prompt in wanted[:2]] + [free[2]]
    assert got[:2] != free[:2]
    assert core.stats().launches_held_back >= TOKENS - 1
    assert stream.lag >= 1


# What depends on the model and its tokenizer.


@functools.cache
def with_tokenizer() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ostinato-words-"))
    build(VARIANT, folder, vocab_size=384)
    byte_level().save(str(folder / "tokenizer.json"))
    return folder


def test_bad_words_are_excluded_as_they_are_and_after_a_space() -> None:
    with LLM(with_tokenizer(), device="cpu", execution="eager", max_model_len=64) as llm:
        assert llm.tokenizer is not None
        words = ["hello", "zq", "return"]
        forms = [llm.tokenizer.encode(space + word, add_special_tokens=False) for word in words for space in ("", " ")]
        assert {len(form) > 1 for form in forms} == {True, False}
        towards = {form[0]: 15.0 for form in forms} | {form[-1]: 15.0 for form in forms}
        asked = {"temperature": 1.0, "seed": 1, "max_tokens": 40, "logit_bias": towards}
        loose = llm.generate("hello", SamplingParams(**asked))[0].outputs[0].token_ids
        strict = llm.generate("hello", SamplingParams(**asked, bad_words=words))[0].outputs[0].token_ids

    def occurs(form: list[int], ids: list[int]) -> bool:
        return any(ids[at : at + len(form)] == form for at in range(len(ids)))

    assert any(occurs(form, loose) for form in forms)
    assert not any(occurs(form, strict) for form in forms)


def test_ids_beyond_the_logits_are_refused_by_name() -> None:
    with engine(VARIANT) as llm:
        for options in ({"logit_bias": {VOCABULARY: 1}}, {"allowed_token_ids": [1, VOCABULARY]}):
            with pytest.raises(ParamError, match=rf"{next(iter(options))}: 112 is no token; .* is 0 to 111"):
                llm.generate([[1]], SamplingParams(**options))
        with pytest.raises(ParamError, match="bad_words: this checkpoint has no tokenizer"):
            llm.generate([[1]], SamplingParams(bad_words=["a"]))
        assert llm.generate([[1]], SamplingParams(max_tokens=1, logit_bias={VOCABULARY - 1: 1}))


def test_bad_words_that_leave_nothing_to_draw_are_refused() -> None:
    with LLM(with_tokenizer(), device="cpu", execution="eager", max_model_len=64) as llm:
        assert llm.tokenizer is not None
        only = llm.tokenizer.encode("h")
        with pytest.raises(ParamError, match="bad_words: they leave no token"):
            llm.generate("a", SamplingParams(bad_words=["h"], allowed_token_ids=only))


def test_the_engine_accounts_for_its_tables() -> None:
    with engine(VARIANT) as llm:
        tables = llm._core.runner.buffers.edits.named_tensors().values()
        assert llm.memory.sampling == sum(table.nbytes for table in tables)
        assert torch.int32 in {table.dtype for table in tables}
