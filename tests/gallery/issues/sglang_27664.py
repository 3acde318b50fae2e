"""sglang#27664: full metadata is made anew for each step, and the captured attention reads the tensors of the first.

Seen: greedy answers that differed from run to run and repeated one character; correct without graphs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Metadata:
    page_table: Tensor
    seq_lens: Tensor


class Backend:
    """Prepares each step's metadata; kept for the life of the engine."""

    forward_metadata: Metadata
    history: list[Metadata]

    def __init__(self) -> None:
        self.history = []

    def init_forward_metadata(self, batch_size: int, variant: int) -> None:
        table = torch.arange(2 * batch_size).view(batch_size, 2)
        self.forward_metadata = Metadata(table.roll(variant, 0), torch.full((batch_size,), 5 + variant))
        self.history.append(self.forward_metadata)


BACKEND = Backend()


def step(query: Tensor, pages: Tensor) -> Tensor:
    metadata = BACKEND.forward_metadata
    keys = pages[metadata.page_table].flatten(1, 2)  # FAULT: address-change
    past = torch.arange(8, device=keys.device) >= metadata.seq_lens[:, None]  # FAULT: address-change
    return torch.einsum("bh,bth->bt", query, keys).masked_fill(past, -1e9).softmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    BACKEND.init_forward_metadata(batch_size, variant)
    return torch.randn(batch_size, 8), torch.randn(2 * batch_size, 4, 8)
