"""Which batch sizes to capture for the traffic there is: exact, by dynamic programming. Knows numbers only, no torch.

A step of n rows runs on the smallest captured size that holds n, and costs what that size costs. A set of at most k
sizes that ends at the largest batch is looked for, so that the sum over all steps is least.

Let H(c) be the number of steps of at most c rows. Sizes p < c next to each other in the set cost
``(H(c) - H(p)) * cost(c)`` for the steps between them, so with ``best(k, c)`` for k sizes of which c is the last,
``best(k, c) = min over p < c of best(k - 1, p) + (H(c) - H(p)) * cost(c)``. A size that costs no less than a larger one
is never worth a graph of its own; of the rest only the first that holds a batch that occurs can be in the best set.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.graphs.buckets import bucket_of, default_sizes
from ostinato.layers.errors import ConfigError

Floats = NDArray[np.float64]
PerSize = Callable[[int], float] | Mapping[int, float]
"""A number for each batch size: a function, or measured sizes between which is interpolated linearly."""

SCHEMA = 1
KIND = "ostinato-sizes"
LARGEST = 1 << 16
"""Rows of a batch beyond which a histogram is taken for a mistake."""
ASSUMED_BYTES = 10 << 20
"""Of a graph where none was measured (TensorRT-LLM#12895 speaks of about 10 MiB)."""
PAYS = 0.01
"""A further graph pays if it saves this share of what all steps cost."""


def best_sizes(histogram: Mapping[int, int], cost: PerSize | None, k: int) -> tuple[int, ...]:
    """The at most ``k`` sizes, ascending, with which the steps of ``histogram`` (rows → steps) cost least.

    ``cost``: of one step at a size, in any unit; None counts rows, so that padding is least. The last size is the
    largest batch in the histogram, which may stand there with 0 steps. ``ConfigError`` where there is nothing to plan.
    """
    counts = _checked(histogram, k)
    return _frontier(counts, _per_size("cost", cost, max(counts)), k)[-1][0]


def advise(
    histogram: Mapping[int, int],
    max_graphs: int,
    *,
    current: Sequence[int] | None = None,
    cost: PerSize | None = None,
    memory_limit: int | None = None,
    bytes_of: PerSize | None = None,
) -> dict[str, Any]:
    """The data of an ``ostinato-sizes`` file: what is wasted now, the best sizes, and what each further graph brings.

    ``current``: the sizes captured now, by default the engine's own. ``cost``: seconds of a step at a size; without,
    ``cost`` in the result counts padded rows. ``memory_limit`` in bytes for all graphs, ``bytes_of`` of one at a size:
    ``best`` is the longest of the best sets that fits. ``ConfigError`` if not even one graph does.
    """
    counts = _checked(histogram, max_graphs)
    largest = max(counts)
    sizes_now = tuple(sorted(set(default_sizes(largest) if current is None else current)))
    if sizes_now and sizes_now[0] < 1:
        raise ConfigError(f"current: {sizes_now[0]} is not a batch size")
    costs = _per_size("cost", cost, max((largest, *sizes_now)))
    sets = _frontier(counts, costs, max_graphs)
    totals = [total for _, total in sets]
    size_bytes = _bytes(bytes_of, largest, memory_limit)
    real = 0 if cost is not None else _real_rows(counts)
    curve = [
        _point(counts, sizes, total, before, real, size_bytes)
        for (sizes, total), before in zip(sets, [None, *totals[:-1]], strict=True)
    ]
    best = _longest_that_fits(curve, memory_limit)
    covered = {rows: count for rows, count in counts.items() if sizes_now and rows <= sizes_now[-1]}
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "histogram": {str(rows): count for rows, count in sorted(counts.items())},
        "max_graphs": max_graphs,
        "unit": "padded rows" if cost is None else "seconds",
        "current": list(sizes_now),
        "best": best["sizes"],
        "wasted_now": wasted(covered, sizes_now) if any(covered.values()) else None,
        "wasted_best": best["wasted"],
        "cost_now": _total(covered, sizes_now, costs) - (0 if cost is not None else _real_rows(covered)),
        "steps_without_graph_now": sum(counts.values()) - sum(covered.values()),
        "pays_up_to": 1 + sum(total - after >= PAYS * total for total, after in itertools.pairwise(totals)),
        "memory_limit": memory_limit,
        "bytes_are": None if size_bytes is None else "assumed" if bytes_of is None else "measured",
        "curve": curve,
    }


def _point(
    counts: Mapping[int, int],
    sizes: tuple[int, ...],
    total: float,
    before: float | None,
    real: float,
    size_bytes: Floats | None,
) -> dict[str, Any]:
    """An entry of the curve; ``before`` is the total with one graph less."""
    return {
        "graphs": len(sizes),
        "sizes": list(sizes),
        "cost": total - real,
        "gain": None if before is None else before - total,
        "wasted": wasted(counts, sizes),
        "bytes": None if size_bytes is None else round(sum(size_bytes[size] for size in sizes)),
    }


def wasted(histogram: Mapping[int, int], sizes: Sequence[int]) -> float:
    """The share of computed rows that are padding, 0 to 1, if the ascending ``sizes`` are captured; all are covered."""
    rows, steps = (np.array(list(values), np.int64) for values in (histogram.keys(), histogram.values()))
    computed = steps @ np.array(sizes)[np.searchsorted(sizes, rows)]
    return float(1 - _real_rows(histogram) / computed)


def _frontier(counts: Mapping[int, int], costs: Floats, most: int) -> list[tuple[tuple[int, ...], float]]:
    """The best set of 1, 2, … sizes, up to ``most`` or until a further one saves nothing, and what it costs."""
    sizes = _candidates(counts, costs)
    before = np.cumsum([0.0, *_steps_between(counts, sizes)])
    price = costs[sizes]
    number = len(sizes)
    between = (before[1:, None] - before[None, :-1]) * price[:, None]  # [last size, sizes below it that are no graph's]
    between[np.triu_indices(number, 1)] = math.inf
    best, room = between[:, 0].copy(), np.empty_like(between)
    parents: list[NDArray[np.int64]] = []
    sets: list[tuple[tuple[int, ...], float]] = [((int(sizes[-1]),), float(best[-1]))]
    for k in range(1, min(most, number)):
        total = np.add(between[k:, k:], best[None, k - 1 : -1], out=room[k:, k:])
        at = total.argmin(axis=1)
        best = np.full(number, math.inf)
        best[k:] = total[np.arange(number - k), at]
        parents.append(np.concatenate([np.zeros(k, np.int64), at + k - 1]))
        sets.append((_walk_back(sizes, parents), float(best[-1])))
    return sets


def _walk_back(sizes: NDArray[np.int64], parents: Sequence[NDArray[np.int64]]) -> tuple[int, ...]:
    last = len(sizes) - 1
    found = [last]
    for parent in reversed(parents):
        last = int(parent[last])
        found.append(last)
    return tuple(int(size) for size in sizes[found[::-1]])


def _candidates(counts: Mapping[int, int], costs: Floats) -> NDArray[np.int64]:
    """Sizes that can be in a best set, ascending, their costs ascending too."""
    largest = max(counts)
    possible = costs[: largest + 1]
    least_above = np.append(np.minimum.accumulate(possible[::-1])[::-1][1:], math.inf)
    worth = np.flatnonzero(possible < least_above)
    worth = worth[worth >= 1]
    wanted = np.array([rows for rows in sorted(counts) if counts[rows] or rows == largest])
    return np.unique(worth[np.searchsorted(worth, wanted)])


def _steps_between(counts: Mapping[int, int], sizes: NDArray[np.int64]) -> Floats:
    """Steps that the i-th size serves if all are captured."""
    steps = np.zeros(len(sizes))
    for rows, count in counts.items():
        steps[np.searchsorted(sizes, rows)] += count
    return steps


def _per_size(name: str, given: PerSize | None, largest: int) -> Floats:
    """``[largest + 1] float64``: the number of each size, infinite at 0."""
    if given is None:
        values = np.arange(largest + 1, dtype=np.float64)
    elif isinstance(given, Mapping):
        values = _interpolated(name, given, largest)
    else:
        values = np.array([math.inf, *(float(given(size)) for size in range(1, largest + 1))])
    values[0] = math.inf
    bad = np.flatnonzero(~(np.isfinite(values[1:]) & (values[1:] >= 0)))
    if bad.size:
        raise ConfigError(f"{name} of batch size {bad[0] + 1} is {values[bad[0] + 1]}; expected a number from 0 up")
    return values


def _interpolated(name: str, points: Mapping[int, float], largest: int) -> Floats:
    """Linear between measured sizes; below the first as the first; above the last as the last two go on."""
    measured = sorted(points)
    if len(measured) < 2 and name == "cost":
        raise ConfigError(f"cost: {len(measured)} measured sizes; two at least are needed to see how it grows")
    heights = [float(points[size]) for size in measured]
    at = np.arange(largest + 1, dtype=np.float64)
    values = np.interp(at, measured, heights)
    if len(measured) > 1:
        slope = max(0.0, (heights[-1] - heights[-2]) / (measured[-1] - measured[-2]))
        values += slope * np.maximum(0.0, at - measured[-1])
    return values


def _bytes(bytes_of: PerSize | None, largest: int, memory_limit: int | None) -> Floats | None:
    """Bytes of a graph by size; assumed where a limit has to be kept and nobody measured."""
    if bytes_of is None and memory_limit is None:
        return None
    return _per_size("bytes", bytes_of if bytes_of is not None else lambda _: ASSUMED_BYTES, largest)


def _longest_that_fits(curve: Sequence[dict[str, Any]], memory_limit: int | None) -> dict[str, Any]:
    if memory_limit is None:
        return curve[-1]
    fitting = [point for point in curve if point["bytes"] <= memory_limit]
    if not fitting:
        one = curve[0]
        text = f"memory limit: {memory_limit:,} bytes are less than one graph of {one['sizes'][0]} rows takes"
        raise ConfigError(f"{text}, {one['bytes']:,} bytes")
    return fitting[-1]


def _total(counts: Mapping[int, int], sizes: Sequence[int], costs: Floats) -> float:
    return math.fsum(count * float(costs[bucket_of(rows, sizes)]) for rows, count in counts.items())


def _real_rows(counts: Mapping[int, int]) -> int:
    return sum(rows * count for rows, count in counts.items())


def _checked(histogram: Mapping[int, int], max_graphs: int) -> dict[int, int]:
    """The histogram, if it has steps, and sizes and counts that can be."""
    if isinstance(max_graphs, bool) or not isinstance(max_graphs, int) or max_graphs < 1:
        raise ConfigError(f"max_graphs: expected an integer from 1 up, got {max_graphs!r}")
    for rows, count in histogram.items():
        if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= LARGEST:
            raise ConfigError(f"histogram: {rows!r} is not a batch size from 1 to {LARGEST:,}")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigError(f"histogram: {count!r} steps of {rows} rows; expected an integer from 0 up")
    if not any(histogram.values()):
        raise ConfigError("histogram: no steps in it")
    return dict(histogram)
