"""The numbers themselves: greedy tokens in fp32 against transformers', and the error in bf16 against its own.

A token differs only if transformers' own two likeliest were further apart than a tie (``TIE``); after a tie the rest of
that request says nothing. Errors in bf16 are those of logits at generated positions, on the tokens that the engine
generated, against transformers in fp32; root of the mean square.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from torch import Tensor

from ostinato.perf.gpu.context import LATENCY, Context
from ostinato.perf.gpu.engine import greedy, logits_of
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.gpu.peers import TransformersOnDevice

PROMPTS = (7, 33, 128, 300)  # their lengths
TOKENS = 48
BF16_TOKENS = 24
TIE = 1e-4


def measure(context: Context) -> Finding:
    """Both figures."""
    prompts = [context.prompt(length) for length in PROMPTS]
    exact = TransformersOnDevice(context.folder, context.device, "float32")
    return _tokens(context, exact, prompts).joined(_errors(context, exact, prompts))


def _tokens(context: Context, exact: TransformersOnDevice, prompts: Sequence[list[int]]) -> Finding:
    """Percent of requests whose tokens are transformers'."""
    context.progress("greedy tokens in fp32")
    outputs = context.engine(LATENCY, dtype="float32").generate(list(prompts), greedy(TOKENS))
    equal, notes = 0, []
    for prompt, output in zip(prompts, outputs, strict=True):
        ours, theirs = output.outputs[0].token_ids, exact.generate(prompt, TOKENS)
        gap = gap_at_difference(ours, theirs, exact.logits(prompt + theirs)[len(prompt) - 1 :])
        equal += gap is None or gap < TIE
        if gap is not None:
            notes.append(f"a prompt of {len(prompt)}: other tokens after a gap of {gap:.2g} between the two likeliest")
    return Finding({"correctness.fp32_equal": 100 * equal / len(prompts)}, tuple(notes))


def gap_at_difference(ours: Sequence[int], theirs: Sequence[int], logits: Tensor) -> float | None:
    """How far apart the two likeliest tokens were where the sequences part; None if they do not.

    ``logits [generated, vocab_size]``: row i gave token i.
    """
    if len(ours) != len(theirs):
        raise RuntimeError(f"{len(ours)} tokens were generated, {len(theirs)} by transformers")
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            first, second = logits[index].topk(2).values.tolist()
            return float(first - second)
    return None


def _errors(context: Context, exact: TransformersOnDevice, prompts: Sequence[list[int]]) -> Finding:
    """Our error over transformers' own, both in bf16."""
    context.progress("logits in bf16")
    context.close_engine()
    llm = context.engine(LATENCY, dtype="bfloat16", execution="eager")
    rough = TransformersOnDevice(context.folder, context.device, "bfloat16")
    ours, theirs = [], []
    for prompt in prompts:
        with logits_of(llm) as seen:
            (output,) = llm.generate(prompt, greedy(BF16_TOKENS, enable_prefix_caching=False))
        tokens = prompt + output.outputs[0].token_ids[:-1]
        truth = exact.logits(tokens)[len(prompt) - 1 :]
        ours.append(torch.cat([rows[:1] for rows in seen])[: len(truth)] - truth)
        theirs.append(rough.logits(tokens)[len(prompt) - 1 :] - truth)
    context.close_engine()
    gc.collect()
    own, peer = rms(ours), rms(theirs)
    return Finding(
        {"correctness.bf16_error": own / peer, "correctness.bf16_rms": own, "correctness.bf16_rms_transformers": peer},
        ("bf16: prefill and decode of one request, uncompiled, with the engine's own attention",),
    )


def rms(errors: Sequence[Tensor]) -> float:
    """Root of the mean square over all of ``errors``."""
    return float(torch.cat([error.flatten() for error in errors]).square().mean().sqrt())
