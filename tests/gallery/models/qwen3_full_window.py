"""Qwen3 whose second layer attends within a window of 8, captured when the window is already full."""

from decoding import TINY, Decoder, Inputs
from torch import Tensor
from transformers import Qwen3Config, StaticCache

decoder = Decoder(
    Qwen3Config(**TINY, head_dim=8, use_sliding_window=True, sliding_window=8, max_window_layers=1), prompt=10
)
model = decoder.model


def step(input_ids: Tensor, position_ids: Tensor, cache: StaticCache) -> Tensor:
    return model(input_ids, position_ids=position_ids, past_key_values=cache).logits[:, -1]


def make_inputs(batch_size: int, variant: int = 0) -> Inputs:
    return decoder.inputs(batch_size, variant)
