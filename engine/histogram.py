"""How often a number fell where: fixed bounds, exact counts. Plain Python, one writer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HistogramSeen:
    """A histogram at one moment."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """One more than ``bounds``: how many observations were at most each bound and above the one before; the last is
    above all of them."""
    sum: float

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """None without observations."""
        return self.sum / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """The bound below which a share ``q`` (0 to 1) of the observations lies; infinity beyond the last one."""
        if not 0 <= q <= 1:
            raise ValueError(f"q must be from 0 to 1, got {q!r}")
        reached, wanted = 0, q * self.count
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            reached += count
            if count and reached >= wanted:
                return bound
        return None

    def as_dict(self) -> Mapping[str, object]:
        """For a JSON file."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum, "count": self.count}


@dataclass
class Histogram:
    """Counts observations between ascending ``bounds``."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    sum: float = 0.0

    def __post_init__(self) -> None:
        """All counts 0."""
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """``times`` observations of ``value``."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def seen(self) -> HistogramSeen:
        """What was observed so far."""
        return HistogramSeen(tuple(self.bounds), tuple(self.counts), self.sum)
