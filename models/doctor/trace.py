"""What a model computes on the way from token ids to logits, and where two such ways part. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 2e-5
"""Of the largest value: how far apart two fp32 computations of the same thing may be."""

Point = tuple[int | None, str]
"""A layer (None: outside of all) and a place: of `STAGES`, or of `PARTS` within a layer."""
Trace = Mapping[Point, Tensor]
"""What stood at each point, ``[tokens, width]``."""

STAGES = ("embedding", "layer", "final norm", "logits")
PARTS = {
    "attention input": "the norm before attention",
    "attention": "attention",
    "feed-forward input": "the norms and the residual between attention and feed-forward",
    "feed-forward": "feed-forward",
}
"""In the order of their computation; what to look at when the first difference of a layer is there."""
BEHIND = "the norms and the residual behind attention and feed-forward"


@dataclass(frozen=True)
class Gap:
    """How far apart two models are at one point."""

    layer: int | None
    place: str
    max_difference: float
    max_reference: float

    @property
    def relative(self) -> float:
        """Of the largest value of the reference; NaN where any value is."""
        return self.max_difference / self.max_reference if self.max_reference else self.max_difference

    @property
    def equal(self) -> bool:
        """Within the tolerance."""
        return self.relative <= TOLERANCE


@dataclass(frozen=True)
class Comparison:
    """The gaps of all stages in order; ``parts`` are those within the first layer that differs.

    ``unseen`` are the points that only one of the models showed.
    """

    token_ids: tuple[int, ...]
    stages: tuple[Gap, ...]
    parts: tuple[Gap, ...]
    unseen: tuple[Point, ...]

    @property
    def first(self) -> Gap | None:
        """The first stage that differs."""
        return next((gap for gap in self.stages if not gap.equal), None)

    @property
    def suspect(self) -> str | None:
        """The part of the model that the first difference comes from; None where all are equal."""
        if self.first is None:
            return None
        if self.first.layer is None:
            return {"embedding": "the embedding", "logits": "the head"}.get(self.first.place, "the final norm")
        part = next((gap for gap in self.parts if not gap.equal), None)
        return PARTS[part.place] if part else BEHIND


def compare(ours: Trace, theirs: Trace, token_ids: Sequence[int]) -> Comparison:
    """Set two traces of the same ``token_ids`` side by side; ``theirs`` is the reference."""
    layers = sorted({layer for layer, _ in (*ours, *theirs) if layer is not None})
    points: list[Point] = [(None, "embedding"), *((layer, "layer") for layer in layers)]
    points += [(None, "final norm"), (None, "logits")]
    stages = _gaps(ours, theirs, points)
    differing = next((gap.layer for gap in stages if not gap.equal), None)
    parts = _gaps(ours, theirs, [(differing, part) for part in PARTS])
    unseen = tuple(sorted(set(ours) ^ set(theirs), key=lambda point: (-1 if point[0] is None else point[0], point[1])))
    return Comparison(tuple(token_ids), tuple(stages), tuple(parts), unseen)


def _gaps(ours: Trace, theirs: Trace, points: Sequence[Point]) -> list[Gap]:
    return [_gap(*point, ours[point], theirs[point]) for point in points if point in ours and point in theirs]


def _gap(layer: int | None, place: str, ours: Tensor, theirs: Tensor) -> Gap:
    if ours.shape != theirs.shape:
        return Gap(layer, place, float("nan"), float(theirs.abs().max()))
    return Gap(layer, place, float((ours - theirs).abs().max()), float(theirs.abs().max()))


class Recorder:
    """Notes what goes into and comes out of modules, through hooks that ``close`` removes."""

    def __init__(self) -> None:
        self.trace: dict[Point, Tensor] = {}
        self._hooks: list[Any] = []

    def before(self, module: nn.Module, point: Point) -> None:
        """Note what goes in."""

        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.note(point, args[0] if args else named["hidden_states"])

        self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, point: Point, change: Callable[..., Tensor] | None = None) -> None:
        """Note what comes out (of several things the first); ``change`` gets it, and what went in."""

        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            value = out[0] if isinstance(out, tuple) else out
            self.note(point, change(value, *args) if change else value)

        self._hooks.append(module.register_forward_hook(hook))

    def note(self, point: Point, value: Tensor) -> None:
        """Keep a copy, as ``[tokens, width]``: what follows may write into the tensor."""
        self.trace[point] = value.detach().to("cpu", torch.float32, copy=True).reshape(-1, value.shape[-1])

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
