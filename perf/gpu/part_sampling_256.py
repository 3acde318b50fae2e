"""``part_sampling`` for 256 requests, or as many as fit."""

from __future__ import annotations

from ostinato.perf.gpu.context import WIDE, Context
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.gpu.part_sampling import extra_time


def measure(context: Context) -> Finding:
    """Microseconds over greedy at batch 256."""
    return extra_time(context, WIDE, WIDE["max_num_seqs"], "sampling_256")
