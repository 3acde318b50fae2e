"""A decode step of one token per row on a static cache, as a user of transformers captures it by hand.

There is one ``StaticCache`` for each batch size, made once: a graph reads it by its address. Before each step
``Decoder.inputs`` fills it with a prompt, of a token more for each variant, so that the step decodes at that position.
Nothing is downloaded: weights are random.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedConfig, StaticCache

PROMPT = 6
"""Tokens before the step of variant 0."""
MAX_LEN = 16
"""Tokens that a cache holds."""
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

Inputs = tuple[Tensor, Tensor, Cache]


class Decoder:
    """One model, and a cache for each batch size."""

    def __init__(
        self,
        config: PreTrainedConfig,
        dtype: torch.dtype = torch.float32,
        prompt: int = PROMPT,
        new_cache: Callable[[PreTrainedConfig], Cache] = lambda config: StaticCache(config, max_cache_len=MAX_LEN),
    ) -> None:
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        self._prompt = prompt
        self._new_cache = new_cache
        self._caches: dict[int, Cache] = {}

    def cache(self, batch_size: int) -> Cache:
        """The cache of this batch size, emptied; new, it has no memory yet."""
        if batch_size not in self._caches:
            self._caches[batch_size] = self._new_cache(self.model.config)
        self._caches[batch_size].reset()
        return self._caches[batch_size]

    def inputs(self, batch_size: int, variant: int) -> Inputs:
        """Token ids and positions, both int64 ``[batch_size, 1]``, and the cache, filled up to that position."""
        device, position = self.model.device, self._prompt + variant
        torch.manual_seed(variant)
        ids = torch.randint(self.model.config.vocab_size, (batch_size, position + 1)).to(device)
        cache = self.cache(batch_size)
        self.model(ids[:, :position], past_key_values=cache)
        return ids[:, position:].clone(), torch.full((batch_size, 1), position, device=device), cache
