"""GPT-2 with a static cache: learned positions, biases, dropout that is off."""

from decoding import Decoder, Inputs
from torch import Tensor
from transformers import GPT2Config, StaticCache

decoder = Decoder(
    GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
)
model = decoder.model


def step(input_ids: Tensor, position_ids: Tensor, cache: StaticCache) -> Tensor:
    return model(input_ids, position_ids=position_ids, past_key_values=cache).logits[:, -1]


def make_inputs(batch_size: int, variant: int = 0) -> Inputs:
    return decoder.inputs(batch_size, variant)
