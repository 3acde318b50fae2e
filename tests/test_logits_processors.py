"""Logits processors of callers: what they see, what becomes of it, what they cost, and whom their faults end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from engines import engine, preempt_before_each_step, prompts, reference_logits, token_ids
from ostinato import OstinatoError, ProcessorRow, SamplingParams
from ostinato.outputs import RequestOutput

VARIANT = "qwen3"
TOKENS = 6
PLAIN = SamplingParams(temperature=0, max_tokens=TOKENS)


@dataclass
class Shift:
    """Adds to each logit what a hash of the row's last token gives; notes what it is shown."""

    scale: float = 4.0
    calls: list[tuple[list[ProcessorRow], torch.Size, torch.dtype]] = field(default_factory=list)

    def __call__(self, rows: list[ProcessorRow], logits: Tensor) -> Tensor:
        self.calls.append((rows, logits.shape, logits.dtype))
        lasts = [[*row.prompt_token_ids, *row.output_token_ids][-1] for row in rows]
        return logits + torch.stack([self.of(last, logits.shape[1]) for last in lasts])

    def of(self, last: int, vocab: int) -> Tensor:
        return self.scale * torch.sin(torch.arange(vocab) * (last + 1.0))


def reference(prompt: Sequence[int], shifts: Sequence[Shift]) -> list[int]:
    tokens = list(prompt)
    for _ in range(TOKENS):
        logits = reference_logits(VARIANT, tokens)[-1]
        tokens.append(int((logits + sum(shift.of(tokens[-1], len(logits)) for shift in shifts)).argmax()))
    return tokens[len(prompt) :]


def asking(*processors: Any, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=TOKENS, logits_processors=processors, **options)


@pytest.mark.parametrize("options", [{}, {"execution": "emulate"}, {"max_num_batched_tokens": 5}], ids=str)
def test_processors_change_their_own_rows_alone(options: dict[str, Any]) -> None:
    wanted, one, two = prompts(4, seed=5), Shift(), Shift(scale=-3.0)
    asked = [asking(one), PLAIN, asking(one, two), asking(two, one)]
    with engine(VARIANT, **options) as llm:
        got = token_ids(llm.generate(wanted, asked))
        stats = llm.stats()
    want = [reference(p, s) for p, s in zip(wanted, ([one], [], [one, two], [two, one]), strict=True)]
    assert got == want
    assert got != [reference(prompt, []) for prompt in wanted]
    if options.get("execution") == "emulate":
        assert stats.steps_without_graph["logits_processors"] >= TOKENS - 1
    assert stats.compiles_after_warmup == 0


def test_rows_that_name_the_same_processor_share_a_call() -> None:
    wanted, shift = prompts(3, seed=5), Shift()
    with engine(VARIANT) as llm:
        llm.generate(wanted, asking(shift))
        vocab = llm.plan.spec.vocab_size
    assert [(len(rows), shape, dtype) for rows, shape, dtype in shift.calls] == [
        (3, (3, vocab), torch.float32)
    ] * TOKENS
    assert [row.prompt_token_ids for row in shift.calls[0][0]] == wanted
    assert [len(row.output_token_ids) for rows, *_ in shift.calls for row in rows] == [
        n for n in range(TOKENS) for _ in range(3)
    ]


def test_penalties_come_after_processors_and_preemption_changes_nothing() -> None:
    wanted = prompts(3, seed=5)
    options = {"frequency_penalty": 2.0, "logprobs": 0}

    def run(preempting: bool) -> list[RequestOutput]:
        with engine(VARIANT) as llm:
            if preempting:
                preempt_before_each_step(llm)
            return llm.generate(wanted, asking(Shift(), **options))

    outputs = run(False)
    assert token_ids(run(True)) == token_ids(outputs)
    answer = outputs[0].outputs[0]
    raw = reference_logits(VARIANT, [*wanted[0], *answer.token_ids]).log_softmax(-1)
    for place, token in enumerate(answer.token_ids):  # logprobs are of what the model said
        assert (answer.logprobs or [])[place][token].logprob == pytest.approx(
            float(raw[len(wanted[0]) - 1 + place, token]), abs=2e-4
        )


def failing(rows: list[ProcessorRow], logits: Tensor) -> Tensor:
    raise ZeroDivisionError("mine")


def clipping(rows: list[ProcessorRow], logits: Tensor) -> Tensor:
    return logits[:, :-1]


@pytest.mark.parametrize(
    ("processor", "message"), [(failing, "mine"), (clipping, "111.* is needed"), (lambda *_: None, "NoneType")]
)
def test_a_processor_that_fails_ends_its_requests_alone(processor: Any, message: str) -> None:
    wanted = prompts(3, seed=5)
    with engine(VARIANT) as llm:
        outputs = llm.generate(wanted, [PLAIN, asking(processor), PLAIN])
        assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
        assert isinstance(outputs[1].error, OstinatoError)
        with pytest.raises(OstinatoError, match=f"logits_processors: .* failed: .*{message}"):
            raise outputs[1].error
        assert token_ids(outputs)[::2] == [reference(prompt, []) for prompt in wanted[::2]]
        assert token_ids(llm.generate(wanted, PLAIN)) == [reference(prompt, []) for prompt in wanted]


def test_explain_says_what_they_cost() -> None:
    with engine(VARIANT, execution="emulate") as llm:
        llm.generate([[1, 2]], asking(Shift()))
        advice = llm.explain().metrics["advice"]
    assert any("logits_processors" in line for line in advice)
