"""Orders in which checkpoints store the rows of fused projections. Plain index arithmetic; knows no file.

Each is our rows ``[all q | all k | all v]`` or ``[gate | up]``, numbered, and arranged as the checkpoint has them.
"""

from __future__ import annotations

import torch

from ostinato.models.spec import LayerSpec
from ostinato.models.weights.rules import Order


def per_group_qkv(layer: LayerSpec) -> Order:
    """One group per key head: its query heads, the key head, the value head (Falcon; GPT-NeoX, a group per head)."""
    kv_heads, head_dim = layer.attention.num_kv_heads, layer.attention.head_dim
    q_size, kv_size = layer.attention.q_size, layer.attention.kv_size
    parts = _numbers(q_size + 2 * kv_size).split([q_size, kv_size, kv_size])
    return torch.cat([part.view(kv_heads, -1, head_dim) for part in parts], dim=1).flatten()


def interleaved_halves(layer: LayerSpec) -> Order:
    """Gate and up rows in turn (gpt-oss)."""
    return _numbers(2 * layer.ffn.intermediate_size).view(2, -1).transpose(0, 1).flatten()


def _numbers(count: int) -> Order:
    return torch.arange(count, device="cpu")  # whatever the caller's default device is
