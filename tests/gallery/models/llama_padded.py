"""Llama with left padding: a mask as wide as the cache, written once."""

import torch
from decoding import MAX_LEN, TINY, Decoder
from torch import Tensor
from transformers import LlamaConfig, StaticCache

decoder = Decoder(LlamaConfig(**TINY))
model = decoder.model


def step(input_ids: Tensor, position_ids: Tensor, cache: StaticCache, attention_mask: Tensor) -> Tensor:
    output = model(input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache)
    return output.logits[:, -1]


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, StaticCache, Tensor]:
    ids, positions, cache = decoder.inputs(batch_size, variant)
    mask = torch.ones(batch_size, MAX_LEN, dtype=torch.int64, device=model.device)
    mask[: batch_size // 2, :2] = 0
    return ids, positions, cache, mask
