"""Our model's trace: one prefill over a small cache, by the pieces as written."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ostinato.layers.sampler import SamplingInputs
from ostinato.models.decode_step import (
    Pieces,
    Sampling,
    StepDecoder,
    StepModel,
    StepState,
    TokenInputs,
    eager_pieces,
    rope_of,
)
from ostinato.models.decoder import Block, Decoder
from ostinato.models.doctor.trace import Recorder, Trace
from ostinato.models.families.family import Family
from ostinato.models.kv_cache import allocate_kv_cache
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.load import load_weights

_CPU = torch.device("cpu")
_BLOCK_SIZE = 16
_MIN_BLOCKS = 3


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

    def head(decoder: StepDecoder, x: Tensor) -> Tensor:
        normed = decoder.norm(x)
        recorder.note((None, "final norm"), normed)
        logits = decoder.compute_logits(normed)
        recorder.note((None, "logits"), logits)
        return logits

    with contextlib.closing(recorder), torch.no_grad():
        _prefill(decoder, replace(eager_pieces(decoder), head=head), len(token_ids), torch.tensor(token_ids))
    return recorder.trace


def _prefill(decoder: StepDecoder, pieces: Pieces, count: int, token_ids: Tensor) -> None:
    """One row of ``count`` tokens in blocks 1, 2, …; each token's logits are asked for."""
    num_blocks = max(-(-count // _BLOCK_SIZE), _MIN_BLOCKS)
    table = torch.zeros(2, num_blocks, dtype=torch.int32)
    table[0] = torch.arange(1, num_blocks + 1)
    everywhere = torch.arange(count)
    state = StepState(torch.zeros(2, dtype=torch.int64), table, torch.zeros(count, dtype=torch.int64))
    cache = allocate_kv_cache(decoder.spec, num_blocks + 1, _BLOCK_SIZE, torch.float32, _CPU)
    step = StepModel(decoder, rope_of(decoder, count, _CPU), cache, state)
    inputs = TokenInputs(
        token_ids=token_ids,
        token_slot=torch.full_like(everywhere, -1),
        positions=everywhere,
        slot_mapping=everywhere + _BLOCK_SIZE,
        row_slot=torch.tensor([0]),
        context_lens=torch.tensor([count], dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32),
    )
    no_sampling = SamplingInputs(*(torch.zeros(0) for _ in SamplingInputs._fields))
    spare = torch.ones_like(everywhere)
    step.mixed(pieces, pieces, inputs, num_blocks, everywhere, spare, Sampling.GREEDY, no_sampling)
