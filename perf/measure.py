"""How things are timed against each other: in turns, and as ratios of neighbours.

A B B A …: two contenders change places from round to round, so a machine that slowly grows faster or slower favours
neither. A ratio is taken within each round, where both saw the same machine; its median is what counts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Contender = Callable[[], float]
"""Does its work once and returns what it measured, mostly seconds."""


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of ``count`` values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarise one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    @classmethod
    def of_ratio(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Summary:
        """Summarise the ratios of two contenders, round by round."""
        return cls.of([top / bottom for top, bottom in zip(numerators, denominators, strict=True)])

    def scaled(self, factor: float) -> Summary:
        """The same in another unit."""
        return Summary(self.median * factor, self.low * factor, self.high * factor, self.count)

    def as_dict(self) -> dict[str, float]:
        """For a JSON file."""
        return asdict(self)


def turns(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Who comes after whom in each round: A B C, C B A, A B C, …"""
    for index in range(rounds):
        yield list(names) if index % 2 == 0 else list(reversed(names))


def interleave(
    contenders: Mapping[str, Contender], rounds: int, progress: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Every contender's values, one a round; a round that is not counted comes first."""
    progress("a first round that does not count")
    for contender in contenders.values():
        contender()
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for number, order in enumerate(turns(list(contenders), rounds), 1):
        progress(f"round {number} of {rounds}")
        for name in order:
            values[name].append(contenders[name]())
    return values


def run_child(module: str, arguments: Mapping[str, object], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run ``python -m module`` with its arguments as one JSON object; its last line is the JSON object returned.

    A process of its own has its own peak memory, imports and compile cache. ``RuntimeError`` with the end of its
    standard error if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"python -m {module} ended with code {done.returncode}:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
