"""pytorch#170646: an input of the graph is not kept alive; the allocator gives its memory to somebody else.

Seen: wrong results without a crash, since the allocator hands the freed memory out again.
"""

from collections import deque
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Bias:
    """Belongs to a request; the registry does not keep it."""

    def __init__(self) -> None:
        self.values = torch.randn(32)


REQUESTS: deque[Bias] = deque(maxlen=1)
BIASES: WeakValueDictionary[int, Bias] = WeakValueDictionary()


def step(logits: Tensor) -> Tensor:
    return (logits + BIASES[0].values).argmax(-1)  # FAULT: freed-input


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    REQUESTS.append(Bias())
    BIASES[0] = REQUESTS[-1]
    return (torch.randn(batch_size, 32),)
