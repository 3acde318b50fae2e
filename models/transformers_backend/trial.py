"""One short text through transformers' own attention and through pages, before a model is trusted.

The text goes in two chunks and a single token, over blocks out of order. Whatever a model keeps between steps besides
keys and values, counts by itself, or adds to its masks, makes the two differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.models.kv_cache import allocate_kv_cache
from ostinato.models.transformers_backend.decoder import TransformersDecoder

CHUNKS = (4, 3, 1)
BLOCKS, BLOCK_SIZE = (3, 1, 4), 3
LARGEST_DIFFERENCE = {torch.float32: 1e-3}
"""Of the logits, by their root mean square; 0.2 in half precision, where one expert chosen otherwise shows."""


def reference_logits(model: Any) -> Tensor:
    """The logits of the whole text, by transformers alone."""
    ids = _ids(model.config.vocab_size, model.device)
    positions = torch.arange(len(ids), device=ids.device)
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        out: Tensor = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
    finally:
        model.config._attn_implementation = before
    return out


def paged_logits(decoder: TransformersDecoder, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The logits of the same text, in steps over pages."""
    ids = _ids(decoder.headed.config.vocab_size, device)
    cache = allocate_kv_cache(decoder.spec, 1 + max(BLOCKS), BLOCK_SIZE, dtype, device)
    ((keys, values),) = decoder.caches_of_layers(cache)
    parts = []
    for end, tokens in zip(torch.tensor(CHUNKS).cumsum(0).tolist(), CHUNKS, strict=True):
        positions = torch.arange(end - tokens, end, device=device)
        x = decoder.embed_tokens(ids[positions], positions)
        for layer in decoder.layers:
            x = layer(x, keys, values, _metadata(positions, end, device))
        parts.append(decoder.compute_logits(decoder.norm(x)))
    return torch.cat(parts)


def difference(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference, by that of ``want``; infinite where either is not finite."""
    got, want = got.float(), want.float()
    apart = ((got - want).square().mean() / want.square().mean().clamp_min(1e-20)).sqrt()
    return float(apart) if bool(apart.isfinite()) else float("inf")


def _ids(vocab_size: int, device: torch.device) -> Tensor:
    """Different tokens, spread over the vocabulary, none of the first few (often special)."""
    return (torch.arange(1, sum(CHUNKS) + 1, device=device) * max(1, vocab_size // (sum(CHUNKS) + 2))) % vocab_size


def _metadata(positions: Tensor, end: int, device: torch.device) -> AttentionMetadata:
    blocks = torch.tensor(BLOCKS, device=device)
    tokens = len(positions)
    return AttentionMetadata(
        slot_mapping=blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
        block_table=blocks[None].to(torch.int32),
        context_lens=torch.tensor([end], dtype=torch.int32, device=device),
        cos=None,
        sin=None,
        cu_seqlens_q=None if tokens == 1 else torch.tensor([0, tokens], dtype=torch.int32, device=device),
    )
