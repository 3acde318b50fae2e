"""Our model's trace: one whole sequence, by the layers as written."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ostinato.models.decode_step import StepDecoder
from ostinato.models.decoder import Block, Decoder
from ostinato.models.doctor.trace import Recorder, Trace
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.load import load_weights
from ostinato.models.whole import hidden_states

_CPU = torch.device("cpu")


def load_ours(folder: Path, family: Family, spec: ModelSpec) -> StepDecoder:
    """The checkpoint's model in fp32 on the CPU. Raises ModelLoadError."""
    with torch.device("meta"):
        decoder = family.build(spec)
    load_weights(decoder, family, spec, folder, _CPU, torch.float32)
    built: StepDecoder = decoder.eval()
    return built


def trace_ours(decoder: StepDecoder, token_ids: Sequence[int]) -> Trace:
    """All points of one prefill of ``token_ids``; of a model that is no ``Decoder``, those behind its layers."""
    recorder = Recorder()
    for index, block in enumerate(decoder.layers if isinstance(decoder, Decoder) else ()):
        assert isinstance(block, Block)
        if index == 0:
            recorder.before(block, (None, "embedding"))
        recorder.before(block.attention, (index, "attention input"))
        recorder.after(block.attention, (index, "attention"))
        recorder.before(block.ffn, (index, "feed-forward input"))
        recorder.after(block.ffn, (index, "feed-forward"))
        recorder.after(block, (index, "layer"))

    ids = torch.tensor(token_ids)
    with contextlib.closing(recorder), torch.no_grad():
        normed = hidden_states(decoder, [len(ids)], torch.float32, _CPU, partial(decoder.embed_tokens, ids))
        recorder.note((None, "final norm"), normed)
        recorder.note((None, "logits"), decoder.compute_logits(normed))
    return recorder.trace
