"""What of each call's results belongs to real rows: told from two runs of different batch sizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ostinato.graphs.inspect.dry_runs.frozen import aligned
from ostinato.graphs.inspect.replays.compare import difference
from ostinato.graphs.inspect.replays.first_divergence import windows
from ostinato.graphs.inspect.replays.row_dims import RowDims, Sizes, only, row_dims
from ostinato.graphs.inspect.replays.slots import Layout
from ostinato.graphs.inspect.tracing.trace import Trace

CacheSlots = Mapping[tuple[int, ...], tuple[Layout, list[int]]]
"""Shape of a cache -> its layout, and the slots in it that hold real rows."""


class CallRows:
    """What of each call's results belongs to real rows."""

    def __init__(self, trace: Trace, other: Trace, sizes: Sizes, real: list[int]) -> None:
        self._real = real
        self._dims: dict[tuple[int, int], RowDims] = {}
        for a, b in aligned(trace, other):
            for number, (mine, theirs) in enumerate(zip(a.outputs, b.outputs, strict=False)):
                self._dims[a.number, number] = row_dims(mine.shape, theirs.shape, sizes)
        self.windows = list(windows(trace.calls))

    def differ(
        self,
        index: int,
        number: int,
        ours: Tensor,
        theirs: Tensor,
        caches: CacheSlots,
    ) -> bool:
        """Whether result ``number`` of call ``index`` differs for real rows; of a cache only their slots count.

        Results of different shapes differ: the poison has sent the step another way.
        """
        if ours.shape != theirs.shape:
            return True
        if tuple(ours.shape) in caches:
            layout, slots = caches[tuple(ours.shape)]
            ours, theirs = (layout.by_slot(t)[torch.tensor(slots, dtype=torch.int64)] for t in (ours, theirs))
            return difference(ours, theirs) > 0
        dims = self._dims.get((index, number), {})
        return difference(only(ours, dims, self._real), only(theirs, dims, self._real)) > 0
