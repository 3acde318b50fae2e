"""The same Qwen3 with a cache of full length in each layer: the mask alone keeps the window."""

from decoding import MAX_LEN, TINY, Decoder, Inputs
from torch import Tensor
from transformers import Cache, PreTrainedConfig, Qwen3Config
from transformers.cache_utils import StaticLayer


def full_length(config: PreTrainedConfig) -> Cache:
    return Cache(layers=[StaticLayer(max_cache_len=MAX_LEN) for _ in range(config.num_hidden_layers)])


decoder = Decoder(
    Qwen3Config(**TINY, head_dim=8, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    new_cache=full_length,
)
model = decoder.model


def step(input_ids: Tensor, position_ids: Tensor, cache: Cache) -> Tensor:
    return model(input_ids, position_ids=position_ids, past_key_values=cache).logits[:, -1]


def make_inputs(batch_size: int, variant: int = 0) -> Inputs:
    return decoder.inputs(batch_size, variant)
