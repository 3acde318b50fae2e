"""Which positions of a prefill have their logits computed: what a caller says, as positions for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ostinato.layers.errors import ParamError
from ostinato.row_batch import Ints, RowBatch
from ostinato.row_checks import integers

LogitPositions = Literal["last", "all"] | Sequence[Any]


def picks_of(batch: RowBatch, logit_positions: LogitPositions) -> list[Ints]:
    """Per row ascending positions within ``[start, end)``, or none. ``ParamError`` names the row and what it has."""
    spans = list(zip(batch.starts.tolist(), batch.ends.tolist(), strict=True))
    if isinstance(logit_positions, str):
        if logit_positions not in ("last", "all"):
            raise ParamError(f"logit_positions: expected 'last', 'all' or positions per row, got {logit_positions!r}")
        return [np.arange(end - 1 if logit_positions == "last" else start, end) for start, end in spans]
    if not hasattr(logit_positions, "__len__") or len(logit_positions) != len(spans):
        raise ParamError(
            f"logit_positions: expected positions for each of {len(spans)} rows, got {logit_positions!r:.80}"
        )
    picks = []
    for row, (positions, (start, end)) in enumerate(zip(logit_positions, spans, strict=True)):
        picked = integers(f"row {row}: logit_positions", positions)
        if len(picked) and (picked[0] < start or picked[-1] >= end or (np.diff(picked) <= 0).any()):
            wanted = f"expected ascending ones of {start:,} to {end - 1:,}, which it computes"
            raise ParamError(f"row {row}: logit_positions: {wanted}; got {positions!r:.80}")
        picks.append(picked)
    return picks
