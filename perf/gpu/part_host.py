"""What the host does for a decode step besides launching it, without a model: ``perf.bench_host``'s measurement."""

from __future__ import annotations

from ostinato.perf.gpu.context import Context
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.measure import Summary

STEPS, WARM_UP_STEPS = 1000, 100


def measure(context: Context) -> Finding:
    """Microseconds of scheduling, packing and committing a step, for one request and for sixteen."""
    from ostinato.perf.bench_host import HostWork

    summaries = {}
    for rows in (1, 16):
        work = HostWork(rows)
        for token in range(WARM_UP_STEPS):
            work.decode(token)
        summaries[f"host.us_{rows}"] = Summary.of([1e6 * sum(work.decode(token)) for token in range(STEPS)])
    return Finding.of(summaries, ("schedule, pack and commit; the launch of copies and of the graph is not in it",))
