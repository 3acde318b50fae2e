"""``torch.tensor(list).to(device)`` copies from pageable memory: error 900 (nano-vllm#175 pays it per token)."""

import torch
from torch import Tensor


def step(embedding: Tensor, tokens: list[int]) -> Tensor:
    ids = torch.tensor(tokens, dtype=torch.int64)
    return embedding.index_select(0, ids.to(embedding.device))  # FAULT: host-to-device


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, list[int]]:
    return torch.arange(256.0).view(32, 8), [(3 * row + variant) % 32 for row in range(batch_size)]
