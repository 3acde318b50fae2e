"""The machine that a number belongs to, and the rate at which it can read memory at all."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

PROBE_REPEATS = 3
LEAST_PROBE_BYTES = 256 << 20  # far more than any cache holds


@dataclass(frozen=True)
class Machine:
    """What has to be equal before two runs are compared; ``cores`` are those this process may use."""

    cpu: str
    cores: int
    threads: int
    memory_gib: int
    python: str
    torch: str
    transformers: str

    def __str__(self) -> str:
        versions = f"torch {self.torch}, transformers {self.transformers}, Python {self.python}"
        work = f"{_counted(self.threads, 'thread')} on {_counted(self.cores, 'core')}"
        return f"{self.cpu}, {work}, {self.memory_gib} GiB, {versions}"

    def as_dict(self) -> dict[str, object]:
        """For a JSON file."""
        return asdict(self)


def this_machine() -> Machine:
    """The machine and the versions of this process; threads are torch's."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=importlib.metadata.version("transformers"),
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cpu_model() -> str:
    """The name in ``/proc/cpuinfo``; some processors' names say little, so family and model numbers follow."""
    fields: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in fields or "model" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"


class ReadProbe:
    """Sums a tensor as large as the weights, with the threads that everything else has: what reading them must take."""

    def __init__(self, num_bytes: int) -> None:
        """``num_bytes`` are read, or the time is scaled to them where they would fit into a cache."""
        size = max(num_bytes, LEAST_PROBE_BYTES)
        self._values = torch.ones(size // 4, dtype=torch.float32)
        self._scale = num_bytes / self._values.nbytes

    def seconds(self) -> float:
        """Time to read ``num_bytes``: the best of a few sums."""
        return min(self._once() for _ in range(PROBE_REPEATS)) * self._scale

    def _once(self) -> float:
        began = time.perf_counter()
        self._values.sum()
        return time.perf_counter() - began
