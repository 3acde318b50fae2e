"""Random lives of requests that edit their logits, on a device that lags behind: aborted, preempted, cached, resumed.

The counts that penalties read are kept by the steps themselves; here the steps are launched before the host has seen
what the last ones drew, and what comes out is compared with a loop that remembers nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from counting_model import MODULUS, VOCABULARY, _weight
from edit_reference import edited
from ostinato import SamplingParams
from ostinato.output_processor import OutputProcessor
from ostinato.request import Request
from ostinato.sampling_buffers import NO_TOP_K
from ostinato.token_masks import ListedTokens
from test_pipeline import EOS, Engine
from test_sampler import inputs, select


class EditingEngine(Engine):
    """Submits requests of every kind; ``words``: the share of those with bad words of several tokens."""

    def __init__(self, seed: int, *, words: float, **options: Any) -> None:
        super().__init__(seed, **options)
        self.words = words
        self.bad_words: dict[Request, list[list[int]]] = {}

    def submit(self) -> Request:
        rng, prompt = self.rng, [self.rng.randrange(VOCABULARY) for _ in range(self.rng.choice([1, 2, 5, 9, 17]))]
        if self.requests and rng.random() < 0.5:
            prompt = (self.requests[-1].token_ids + prompt)[:20]
        options: dict[str, Any] = {"temperature": rng.choice([0.0, 0.0, 1.0]), "ignore_eos": rng.random() < 0.5}
        for name, values in {
            "repetition_penalty": [0.5, 3.0],
            "presence_penalty": [-2.0, 2.0],
            "frequency_penalty": [-1.0, 2.0],
            "logit_bias": [{rng.randrange(VOCABULARY): 3.0, VOCABULARY - 1: -2.0}],
            "allowed_token_ids": [rng.sample(range(VOCABULARY), 6)],
            "top_p": [0.8],
        }.items():
            options |= {name: rng.choice(values)} if rng.random() < 0.3 else {}
        params = SamplingParams(max_tokens=rng.randint(1, 12), **options)
        words = [[rng.randrange(VOCABULARY) for _ in range(2)] for _ in range(40)] if rng.random() < self.words else []
        allowed = params.allowed_token_ids
        mask = ListedTokens(VOCABULARY, allowed, words) if words or allowed is not None else None
        request = Request(self.made, prompt, params, rng.randrange(1 << 63), EOS, mask)
        self.bad_words[request] = words
        self.made += 1
        self.core.add(request, OutputProcessor(None, request, None))
        self.requests.append(request)
        return request

    def expected(self, request: Request) -> list[int]:
        params, prompt, answer = request.params, request.prompt_token_ids, list[int]()
        for index in range(min(params.max_tokens, 40 - len(prompt))):
            scores = edited(self.logits([*prompt, *answer]), prompt, answer, params, self.bad_words[request])
            filters = {"top_k": params.top_k or NO_TOP_K, "top_p": params.top_p}
            asked = inputs(1, temperature=params.temperature, seed=request.seed, position=index, **filters)
            token = int(select(scores[None], asked))
            if token < 0:
                break
            answer.append(token)
            if token in EOS and not params.ignore_eos:
                break
        return answer

    def logits(self, tokens: list[int]) -> Tensor:
        at = torch.arange(len(tokens))[-self.model.window :]
        total = int(((torch.tensor(tokens)[at] + 1) * _weight(at)).sum()) % MODULUS
        return self.model.logits[total % 211]


@pytest.mark.parametrize(("seed", "words"), [(1, 0.0), (3, 0.0), (4, 0.3)])
def test_random_schedules_of_edited_requests_give_what_a_loop_gives(seed: int, words: float) -> None:
    engine = EditingEngine(seed, words=words, emulate=seed == 1, debug=True)
    for _ in range(40):
        engine.schedule()
    stats = engine.core.stats()
    assert engine.stream.lag >= 2
    assert stats.preemptions > 0
    assert stats.prefix_hits > 0
    assert bool(stats.launches_held_back) == bool(words)
    assert stats.captures_after_warmup == 0


def test_steps_that_fail_leave_no_count_behind() -> None:
    """What a step counted on the device and the host never saw is counted once, when it is computed again."""
    engine = EditingEngine(9, words=0.0, emulate=False)
    collect, calls = engine.runner.collect, [0]

    def failing(flight: Any) -> list[int]:
        calls[0] += 1
        if calls[0] % 7 == 0:
            raise KeyboardInterrupt
        return collect(flight)

    engine.runner.collect = failing  # type: ignore[method-assign]
    for _ in range(12):
        request = engine.submit()
        request.params = replace(request.params, frequency_penalty=2.0)
    while any(engine.core.is_live(request) for request in engine.requests):
        try:
            engine.core.step()
        except KeyboardInterrupt:
            engine.core.scheduler.check()
    for request in engine.requests:
        engine.check(request)
    assert calls[0] > 14
