"""Our paged attention as an attention function of transformers.

transformers' attention modules call ``attention(module, query, key, value, mask, **settings)`` by the name in their
config. Which pages belong to a call it cannot say, and settings of ours do not reach every model's attention, so each
attention module holds the model's ``Step``. The n-th call of a forward pass owns the n-th cache: a module that is
called twice has two. No mask function is registered under our name: transformers makes no masks then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.attention.paged import write_and_attend
from ostinato.layers.attention.scoring import Scoring

NAME = "ostinato_paged"
HELD_AS = "ostinato_step"


@dataclass(frozen=True)
class CallScoring:
    """What is fixed of a call's scoring; the sinks are a parameter of the model and come with the call."""

    scale: float
    window: int
    softcap: float


class Step:
    """What the attention calls of one forward pass share: pages by call, and how far the pass has come."""

    def __init__(self, scorings: tuple[CallScoring, ...]) -> None:
        self.scorings = scorings
        self.calls = 0
        self.k_caches: tuple[Tensor, ...] = ()
        self.v_caches: tuple[Tensor, ...] = ()
        self.meta: AttentionMetadata | None = None

    def begin(self, k_caches: tuple[Tensor, ...], v_caches: tuple[Tensor, ...], meta: AttentionMetadata) -> None:
        """The pages and the metadata of the pass that follows."""
        self.k_caches, self.v_caches, self.meta, self.calls = k_caches, v_caches, meta, 0

    def end(self) -> None:
        """Let the tensors go."""
        self.k_caches, self.v_caches, self.meta = (), (), None


def hold(model: nn.Module, step: Step) -> None:
    """Let every module of ``model`` find ``step``: which of them attend is not known by their types."""
    for module in model.modules():
        module.__dict__[HELD_AS] = step


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    s_aux: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Write the new keys and values, attend over the pages.

    query ``[1, num_heads, tokens, head_dim]``, key and value ``[1, num_kv_heads, tokens, head_dim]``; returns
    ``[1, tokens, num_heads, head_dim]``. ``settings`` were read when the model was described.
    """
    step: Step = module.__dict__[HELD_AS]
    call = step.calls
    step.calls = call + 1
    k_cache, v_cache, meta, scoring = step.k_caches[call], step.v_caches[call], step.meta, step.scorings[call]
    if meta is None:
        raise RuntimeError("attention outside of a step")
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    k, v = (each.to(k_cache.dtype) for each in (k, v))
    whole = Scoring(scoring.scale, scoring.window, scoring.softcap, None, s_aux)
    attended = write_and_attend(q.to(k_cache.dtype).contiguous(), k, v, k_cache, v_cache, meta, whole)
    return attended.to(query.dtype).unsqueeze(0), None


AttentionInterface.register(NAME, paged_attention)
