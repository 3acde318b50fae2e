"""Mixtral in bfloat16, as its checkpoints are: experts by grouped_mm, what transformers chooses by itself."""

import torch
from decoding import TINY, Decoder, Inputs
from torch import Tensor
from transformers import MixtralConfig, StaticCache

decoder = Decoder(MixtralConfig(**TINY, num_local_experts=4, num_experts_per_tok=2), torch.bfloat16)
model = decoder.model


def step(input_ids: Tensor, position_ids: Tensor, cache: StaticCache) -> Tensor:
    return model(input_ids, position_ids=position_ids, past_key_values=cache).logits[:, -1]


def make_inputs(batch_size: int, variant: int = 0) -> Inputs:
    return decoder.inputs(batch_size, variant)
