"""A causal model of transformers in two parts: the decoder with everything up to its last norm, and the head.

The head is whatever the model's own ``forward`` does after its decoder: it runs with a stand-in that returns the hidden
states it is given.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ostinato.models.transformers_backend.probe import Unfit


class _States:
    """What a decoder returns, in transformers' words: hidden states, and nothing of what else it may be asked for."""

    past_key_values = hidden_states = attentions = cross_attentions = router_logits = None

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]


class GivenStates(nn.Module):
    """Stands where ``decoder`` was: its "embeddings" are the hidden states already."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self._place = list(inspect.signature(decoder.forward).parameters).index("inputs_embeds")

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **_: Any) -> Any:
        """Hidden states in, the same out, in the words of transformers."""
        given = args[self._place] if inputs_embeds is None else inputs_embeds
        return _States(given)


def decoder_of(model: Any) -> Any:
    """The part of ``model`` that makes hidden states; ``Unfit`` if it takes no positions."""
    found = model.get_decoder()
    decoder = found if isinstance(found, PreTrainedModel) else model.base_model
    if decoder is model:
        raise Unfit("its decoder and its head are not apart")
    takes = inspect.signature(decoder.forward).parameters
    if "position_ids" not in takes or "inputs_embeds" not in takes:
        raise Unfit("its code takes no position_ids (it counts positions itself) or no inputs_embeds")
    return decoder


def take_out(model: nn.Module, decoder: nn.Module) -> None:
    """Put the stand-in into ``decoder``'s place, wherever ``model`` has it."""
    stand_in = GivenStates(decoder)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is decoder:
                parent._modules[name] = stand_in


def last_hidden_state(decoder: nn.Module, token_ids: Tensor, positions: Tensor, **more: Any) -> Tensor:
    """Normed hidden states ``[tokens, hidden_size]`` of ``[tokens] int64`` ids at their positions."""
    out: Tensor = decoder(input_ids=token_ids[None], position_ids=positions[None], use_cache=False, **more)[0]
    return out[0]


def logits_of(headed: nn.Module, hidden: Tensor) -> Tensor:
    """``[rows, hidden_size] -> [rows, vocab_size]`` by a model whose decoder was taken out."""
    out: Tensor = headed(inputs_embeds=hidden[None], use_cache=False).logits
    return out[0]
