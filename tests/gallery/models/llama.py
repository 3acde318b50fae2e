"""Llama with a static cache: grouped-query attention, rotary positions."""

from decoding import TINY, Decoder, Inputs
from torch import Tensor
from transformers import LlamaConfig, StaticCache

decoder = Decoder(LlamaConfig(**TINY))
model = decoder.model


def step(input_ids: Tensor, position_ids: Tensor, cache: StaticCache) -> Tensor:
    return model(input_ids, position_ids=position_ids, past_key_values=cache).logits[:, -1]


def make_inputs(batch_size: int, variant: int = 0) -> Inputs:
    return decoder.inputs(batch_size, variant)
