"""A model that adds up its context exactly: any wrong token, place, page, table or length changes what it says next.

Its one layer stores each token in the pages, as any layer stores its keys, and reads the whole context back through the
block table. The next token's logits are a function of a weighted sum over that context, in integers. ``next_token`` is
the same from a plain list of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostinato import EngineConfig, SamplingParams
from ostinato.attention_choice import Attention
from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.sampler import SamplingInputs
from ostinato.models.decode_step import sample_by_passes
from ostinato.models.spec import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec
from ostinato.models.step_inputs import Sampling
from ostinato.plan import Plan

VOCABULARY = 53
MODULUS = 1_000_003
SPEC = ModelSpec(
    "Counting",
    VOCABULARY,
    2,
    (LayerSpec(AttentionSpec(1, 1, 1, 1.0, None), FfnSpec(1, "silu")),),
    NormSpec(1e-5),
    False,
    64,
    "float32",
)


def _weight(position: Tensor) -> Tensor:
    return (position + 3) * (position + 11) % 1009


class CountingModel(torch.nn.Module):
    """The surface of ``models.decode_step.StepDecoder``."""

    spec = SPEC

    def __init__(self, window: int = 64) -> None:
        """``window``: tokens that a token sees, itself included."""
        super().__init__()
        self.window = window
        self.norm = torch.nn.Identity()
        self.layers = [self._layer]
        table = torch.Generator().manual_seed(0)
        self.logits = torch.nn.Parameter(torch.randn(211, VOCABULARY, generator=table), requires_grad=False)

    @property
    def kinds(self) -> tuple[LayerSpec, ...]:
        return self.spec.layers

    def embed_tokens(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return torch.stack([token_ids, positions], dim=1)

    def caches_of_layers(self, kv_cache: Any) -> Any:
        return kv_cache

    def _layer(self, x: Tensor, keys: Tensor, values: Tensor, meta: AttentionMetadata) -> Tensor:
        keys.view(-1).index_copy_(0, meta.slot_mapping, x[:, 0].to(keys.dtype))
        rows = self._rows(x, meta)
        context = keys[meta.block_table[rows]].flatten(1)  # [tokens, width * block_size]
        at = torch.arange(context.shape[1])[None, :]
        seen = (at <= x[:, 1:2]) & (at > x[:, 1:2] - self.window)
        total = torch.where(seen, (context.nan_to_num().long() + 1) * _weight(at), 0).sum(1)
        shorter = torch.where(meta.context_lens[rows] > x[:, 1], 0, 17)  # a context that ends before its token
        return ((total + shorter) % MODULUS)[:, None]

    @staticmethod
    def _rows(x: Tensor, meta: AttentionMetadata) -> Tensor:
        """The row of each token; padding tokens belong to the last."""
        if meta.cu_seqlens_q is None:
            return torch.arange(len(x))
        ends = meta.cu_seqlens_q[1:].long()
        return torch.searchsorted(ends, torch.arange(len(x)), right=True).clamp_max(len(ends) - 1)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.logits[hidden[:, 0] % 211]


def next_token(model: CountingModel, tokens: Sequence[int], params: SamplingParams, seed: int, index: int) -> int:
    """What the model generates after ``tokens``, as the ``index``-th token of its request: nothing remembered."""
    at = torch.arange(len(tokens))[-model.window :]
    total = int(((torch.tensor(tokens)[at] + 1) * _weight(at)).sum()) % MODULUS
    logits = model.logits[[total % 211]].clone()
    if params.greedy:
        return int(logits.argmax())
    one = torch.ones(1)
    inputs = SamplingInputs(
        one * params.temperature,
        one * (params.top_k or 1 << 24),
        one * params.top_p,
        one * params.min_p,
        torch.tensor([seed - (1 << 64) if seed >> 63 else seed]),
        torch.tensor([index]),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.zeros(1, 1),
    )
    return int(sample_by_passes()(logits, Sampling.FILTERED, inputs))


def counting_plan(*, window: int | None = None, **options: Any) -> Plan:
    """A plan of a small engine over ``CountingModel``; under a window its cache is too small for whole requests."""
    settings: dict[str, Any] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 12,
        "execution": "emulate",
        "block_size": 3,
    }
    config = EngineConfig("demo", device="cpu", **(settings | {"prefill_capture_sizes": [4, 8]} | options))
    blocks = 1 + (60 if window is None else 30) // (config.block_size or 1)
    return Plan(
        config=config,
        folder=Path(),
        model_impl="ostinato",
        spec=SPEC,
        device=torch.device("cpu"),
        dtype=torch.float32,
        num_threads=torch.get_num_threads(),
        attention=Attention(AttentionBackend.TORCH, "for tests"),
        block_size=config.block_size or 1,
        max_model_len=40,
        window=window,
        num_blocks=blocks,
        capture_sizes=(1, 2, 4),
        prefill_capture_sizes=config.prefill_capture_sizes or (),
        num_parameters=0,
        weight_bytes=0,
        kv_bytes_per_token=8,
        free_bytes=1 << 30,
        notes=(),
    )
