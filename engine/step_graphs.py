"""The graphs of one engine: decode steps by batch size, steps with prompts by token count; and which of them serves.

Two sets on one stream. Where an engine runs without graphs both are empty and serve nothing. A step whose size was
dropped for lack of memory is counted, by what its sizes are.
"""

from __future__ import annotations

from collections import Counter

from ostinato.graphs.graph_set import GraphSet
from ostinato.graphs.streams import DeviceStream
from ostinato.models.step_inputs import Sampling
from ostinato.plan import Plan
from ostinato.step import Step

PREFILL_ROWS = 8
"""Rows that a captured step with prompts samples at most."""


class StepGraphs:
    """``decode`` and ``prefill``: captured by ``WarmUp``, replayed by the runner."""

    def __init__(self, plan: Plan, stream: DeviceStream, *, captured: bool) -> None:
        """``captured``: whether this engine's steps are graphs at all."""
        self.decode = GraphSet[Sampling](plan.capture_sizes if captured else (), stream, "batch sizes")
        self.prefill = GraphSet[Sampling](plan.prefill_capture_sizes if captured else (), stream, "prompt sizes")
        self.prefill_rows = min(PREFILL_ROWS, plan.config.max_num_seqs)
        self._missed: Counter[str] = Counter()
        self.not_served: Counter[str] = Counter()
        """Steps that are none for a graph, per reason."""

    @property
    def sets(self) -> tuple[GraphSet[Sampling], ...]:
        """Both."""
        return self.decode, self.prefill

    @property
    def captures(self) -> int:
        """Captured graphs so far."""
        return sum(graphs.captures for graphs in self.sets)

    @property
    def breaks(self) -> tuple[str, ...]:
        """Functions around which graphs are split."""
        return tuple(dict.fromkeys(name for graphs in self.sets for name in graphs.breaks))

    @property
    def fallbacks(self) -> dict[str, int]:
        """Steps that ran without a graph because there was no memory for it, per kind of size."""
        lost = [graphs for graphs in self.sets if graphs.dropped]
        sizes = [", ".join(map(str, sorted(graphs.dropped))) for graphs in lost]
        return {
            f"no memory for graphs of {graphs.sizes_are} {named}": self._missed[graphs.sizes_are]
            for graphs, named in zip(lost, sizes, strict=True)
        }

    def decode_size(self, rows: int) -> int | None:
        """The captured size that serves ``rows`` rows, if one does."""
        return self._size(self.decode, rows)

    def size_of(self, step: Step, obstacle: str | None) -> int | None:
        """The captured size that serves a step, if one does; ``obstacle``: why none can do what it has to do."""
        reason = obstacle if step.is_decode else self._why_not(step) or obstacle
        if reason is not None:
            if not step.is_decode or self.decode.sizes:
                self.not_served[reason] += 1
            return None
        if step.is_decode:
            return self.decode_size(len(step.requests))
        return self._size(self.prefill, max(2, step.num_tokens))

    def close(self) -> None:
        """Free all of them."""
        for graphs in self.sets:
            graphs.close()

    def _why_not(self, step: Step) -> str | None:
        """Why a step with prompts is none for a graph, had all sizes been captured."""
        largest = max((*self.prefill.sizes, *self.prefill.dropped), default=0)
        if not largest:
            return "no prefill_capture_sizes"
        if not step.sample_rows:
            return "no prompt ends in it"
        if len(step.sample_rows) > self.prefill_rows:
            return f"it samples more than {self.prefill_rows} rows"
        return f"it has more than {largest:,} tokens" if step.num_tokens > largest else None

    def _size(self, graphs: GraphSet[Sampling], wanted: int) -> int | None:
        size = graphs.size_for(wanted)
        if size is None and wanted <= max(graphs.dropped, default=0):
            self._missed[graphs.sizes_are] += 1
        return size
