"""What a model of transformers asks of attention, learned from one forward pass on ``meta`` that records every call.

Shapes and settings come with the calls. The mask is what transformers would have computed: its mask function is asked
about enough positions to know that it is causal, and how wide its window is. Raises ``Unfit`` with the reason where
paged attention cannot do the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ostinato.models.transformers_backend.attention import CallScoring

NAME = "ostinato_probe"
TOKENS = 5
MOST_POSITIONS = 1 << 17  # of a mask that are looked at
_MASK = "ostinato_mask"

_UNDERSTOOD = frozenset({"scaling", "sliding_window", "softcap", "s_aux", "dropout", "is_causal"})
_NO_CONCERN = frozenset({
    "position_ids", "cache_position", "position_embeddings", "use_cache", "return_dict", "logits_to_keep",
    "output_attentions", "output_hidden_states", "output_router_logits",
})  # fmt: skip

MaskFunction = Callable[[Any, Any, Any, Any], Any]


class Unfit(Exception):
    """Why transformers' code of a model cannot run over pages."""


@dataclass(frozen=True)
class Call:
    """One call of attention in a forward pass."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scoring: CallScoring
    sinks: bool


class _Recording(threading.local):
    calls: list[Call] | None = None
    max_positions = 0


_recording = _Recording()


@contextmanager
def recorded_calls(max_positions: int) -> Iterator[list[Call]]:
    """Every attention call that this thread's models make under the name ``NAME``, for texts up to that length."""
    calls: list[Call] = []
    _recording.calls, _recording.max_positions = calls, max_positions
    try:
        yield calls
    finally:
        _recording.calls = None


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    if _recording.calls is not None:
        _recording.calls.append(_call(module, query, key, value, attention_mask, settings))
    batch, heads, tokens, _ = query.shape
    return query.new_empty((batch, tokens, heads, value.shape[-1])), None


def _call(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, settings: dict[str, Any]
) -> Call:
    unknown = sorted(
        name for name, given in settings.items() if given is not None and name not in _UNDERSTOOD | _NO_CONCERN
    )
    if unknown:
        raise Unfit(f"its attention takes {', '.join(unknown)}, which paged attention does not have")
    if key.shape[2] != query.shape[2]:
        raise Unfit(f"its attention sees {key.shape[2]} keys for {query.shape[2]} tokens: more than its own past")
    if key.shape[-1] != value.shape[-1] or key.shape[1] != value.shape[1]:
        raise Unfit(
            f"its keys have {key.shape[1]} heads of {key.shape[-1]}, its values {value.shape[1]} of {value.shape[-1]} "
            "(latent attention): pages hold one shape"
        )
    if settings.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise Unfit("its attention is not causal")
    if settings.get("dropout"):
        raise Unfit("its attention drops weights at random")
    heads, head_dim = query.shape[1], query.shape[-1]
    scale, softcap = settings.get("scaling"), settings.get("softcap")
    for name, number in (("scaling", scale), ("softcap", softcap)):
        if number is not None and not isinstance(number, int | float):
            raise Unfit(f"the {name} of its attention is a {type(number).__name__}, not a number")
    window = _window(mask, _recording.max_positions)
    scoring = CallScoring(head_dim**-0.5 if scale is None else float(scale), window, float(softcap or 0.0))
    return Call(heads, key.shape[1], head_dim, scoring, settings.get("s_aux") is not None)


def _window(mask: Tensor | None, max_positions: int) -> int:
    """The width of the causal window that ``mask`` stands for; 0: everything before."""
    if mask is None:
        return 0
    function: MaskFunction | None = getattr(mask, _MASK, None)
    if function is None:
        raise Unfit("it makes attention masks of its own")
    return window_of(function, max_positions)


def window_of(function: MaskFunction, max_positions: int) -> int:
    """The window of a mask function, 0 for none; ``Unfit`` where it is anything but causal, over a window or not."""
    length = min(max_positions, MOST_POSITIONS)
    near_powers = {(1 << power) + step for power in range(length.bit_length()) for step in (-1, 0, 1)}
    queries = torch.tensor(sorted(q for q in near_powers | {length - 1} if 0 <= q < length))[:, None]
    keys = torch.arange(length)[None, :]
    zero = torch.zeros((), dtype=torch.int64)
    try:
        visible = torch.as_tensor(function(zero, zero, queries, keys)).expand(len(queries), length)
    except Exception as error:
        raise Unfit(f"its attention mask is more than causal ({type(error).__name__}: {error})") from error
    count = int(visible[-1].sum())
    window = count if count < length else 0
    expected = keys <= queries
    if window:
        expected = expected & (keys > queries - window)
    if not torch.equal(visible, expected):
        raise Unfit("its attention mask is not causal, or changes along the text")
    return window


def _mask(*_: Any, q_length: int, kv_length: int, mask_function: MaskFunction, **__: Any) -> Tensor:
    """A mask without values that knows its function."""
    mask = torch.empty((1, 1, q_length, kv_length), device="meta")
    setattr(mask, _MASK, mask_function)
    return mask


AttentionInterface.register(NAME, _record)
AttentionMaskInterface.register(NAME, _mask)
