"""transformers#36484: one compiled function serves all layers, its guard is the layer's index, and the limit is 8.

Seen: a compiled Llama reached the limit of 8 compilations and went on eagerly.
"""

import torch
from torch import Tensor


class Layer:
    """One of many that share the code of ``forward``."""

    def __init__(self, layer_idx: int) -> None:
        self.layer_idx = layer_idx
        self.weight = torch.eye(8) * (1 + layer_idx)


LAYERS = [Layer(index) for index in range(4)]


def step(hidden: Tensor, cache: Tensor, layer: Layer) -> Tensor:  # FAULT: recompile (either)
    cache[layer.layer_idx, : hidden.shape[0]] += hidden  # FAULT: recompile (either)
    return hidden @ layer.weight  # FAULT: recompile (either)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, Layer]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.zeros(4, 8, 8), LAYERS[variant % 4]
