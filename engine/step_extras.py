"""What some steps do beside the work that graphs hold: logprobs of prompts, and the logits processors of callers.

A step with any of it runs without a graph, for the reason that is given here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ostinato.probe_buffers import ProbeBuffers, ProbedPrompt, prompt_spans
from ostinato.step import Step
from ostinato.user_processors import processing


@dataclass(frozen=True)
class StepExtras:
    """Bound to one step: nothing of it depends on what happens before the step runs."""

    reason: str | None = None
    """Why the step is none for a graph, if it is none."""
    watch: Callable[[Tensor], None] | None = None
    """To be shown the last layer's output for all tokens."""
    process: Callable[[Tensor], Tensor] | None = None
    """From the head's logits to those that are edited and sampled, float32."""
    prompts: Sequence[ProbedPrompt] = ()
    """What ``watch`` brings to the host."""


NOTHING = StepExtras()


def extras_of(step: Step, probes: ProbeBuffers, head: Callable[[Tensor], Tensor]) -> StepExtras:
    """What ``step`` needs; ``head``: from hidden states to logits."""
    asked = (request.params for request in step.requests)
    if not any(params.logits_processors or params.prompt_logprobs is not None for params in asked):
        return NOTHING
    process = processing([step.requests[row] for row in step.sample_rows])
    spans = prompt_spans(step)
    if process is None and not spans:
        return NOTHING
    prompts, watch = probes.prompts(spans, head)
    reason = "logits_processors" if process is not None else "prompt_logprobs"
    return StepExtras(reason, watch if spans else None, process, prompts)
