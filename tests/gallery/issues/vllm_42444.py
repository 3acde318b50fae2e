"""vllm#42444: attention plans its work when it has no plan; the warm-up leaves one, so the graph never plans again.

Seen: DeepSeek V4 Flash answered with gibberish or repetition loops once full graphs were on.
"""

import torch
from torch import Tensor


class SchedulerMetadata:
    """What the first call leaves for the next ones."""

    plan: Tensor | None = None


METADATA = {size: SchedulerMetadata() for size in (1, 2, 4, 8)}


def sparse_decode(query: Tensor, keys: Tensor, topk_length: Tensor, metadata: SchedulerMetadata) -> Tensor:
    if metadata.plan is None:  # FAULT: warmup-dependent (either)
        metadata.plan = topk_length.clamp(min=1).cumsum(0)  # FAULT: warmup-dependent (either)
    share = metadata.plan.diff(prepend=metadata.plan.new_zeros(1)).to(query.dtype)
    return torch.einsum("bh,bth->bt", query, keys) / share[:, None]


def step(query: Tensor, keys: Tensor, topk_length: Tensor) -> Tensor:
    return sparse_decode(query, keys, topk_length, METADATA[query.shape[0]]).softmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    lens = torch.tensor([2 + (row + variant) % 5 for row in range(batch_size)])
    return torch.randn(batch_size, 8), torch.randn(batch_size, 16, 8), lens
