"""An adapter lives as long as its request; the graph keeps its address and nothing else (pytorch#170646)."""

from collections import deque
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Adapter:
    def __init__(self) -> None:
        self.delta = torch.randn(8, 8)


RUNNING: deque[Adapter] = deque(maxlen=1)
ADAPTERS: WeakValueDictionary[str, Adapter] = WeakValueDictionary()


def step(hidden: Tensor, name: str) -> Tensor:
    delta = ADAPTERS[name].delta
    return hidden + hidden @ delta  # FAULT: freed-input


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, str]:
    torch.manual_seed(variant)
    RUNNING.append(Adapter())
    ADAPTERS["current"] = RUNNING[-1]
    return torch.randn(batch_size, 8), "current"
