"""sglang#29413: a draft step expands lengths through the host and by repeats whose sum only the device knows.

Seen: the draft step had to run without a graph, and the host waited for it in each round.
"""

import torch
from torch import Tensor


def expand_seq_lens(seq_lens: Tensor, extend_lens: Tensor) -> Tensor:
    host = extend_lens.tolist()  # FAULT: device-sync
    expanded = seq_lens.repeat_interleave(extend_lens)  # FAULT: data-dependent-shape
    return expanded + max(host)


def step(hidden: Tensor, seq_lens: Tensor, extend_lens: Tensor) -> Tensor:
    return expand_seq_lens(seq_lens, extend_lens).to(hidden.dtype).sum() + hidden


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.arange(batch_size) + 4, 1 + (torch.arange(batch_size) + variant) % 3
