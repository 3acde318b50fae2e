"""How much memory an engine may have (a device's own figure, or the machine's within its container's), and has."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a process the control group it lives in, and its limits."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one engine on its device, by what they are for. Prints one a line, beside what was planned."""

    weights: int
    kv_cache: int
    """Null block included: what the caller gave, or the plan took; 0 while the engine sleeps."""
    tables: int
    """Of rotations, for all positions, and the block table."""
    activations: int | None
    """Peak of the largest step, logits included, measured at start-up; None on a CPU, where nobody counts."""
    logits: int
    """Of a full batch, in the model's dtype."""
    sampling: int
    """Tables of token counts, biases and masks, one row for each of ``max_num_seqs`` and a spare one."""
    graphs: int | None
    """What capturing took: their memory pool and what the driver keeps of them, measured; 0 on a CPU. None before."""
    planned: MemoryUse | None = None
    """The same before anything was allocated, of an engine that is."""

    @property
    def total(self) -> int:
        """All that is known; logits are part of the activations."""
        known = self.weights + self.kv_cache + self.tables + self.sampling
        return known + (self.activations or 0) + (self.graphs or 0)

    def __str__(self) -> str:
        """One a line."""
        columns = [self._shown(), *([self.planned._shown()] if self.planned else [])]
        lines = [f"{name:<12} {value}" for name, value in columns[0].items()]
        if self.planned is None:
            return "\n".join(lines)
        width = max(map(len, lines)) + 2
        planned = [f"planned {value}" for value in columns[1].values()]
        return "\n".join(f"{line:<{width}} {before}" for line, before in zip(lines, planned, strict=True))

    def _shown(self) -> dict[str, str]:
        names = [field.name for field in fields(self) if field.name != "planned"]
        values: dict[str, int | None] = {name: getattr(self, name) for name in names} | {"total": self.total}
        return {name: "not measured" if value is None else format_bytes(value) for name, value in values.items()}


def weight_bytes(decoder: object, otherwise: int) -> int:
    """Of a module's parameters and buffers, each storage once; ``otherwise`` of what is no module."""
    if not isinstance(decoder, torch.nn.Module):
        return otherwise
    tensors = [*decoder.parameters(), *decoder.buffers()]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def free_bytes(device: torch.device) -> int:
    """Bytes that may be allocated on ``device`` now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    left = container_bytes_left(CGROUP)
    return available if left is None else min(available, left)


def container_bytes_left(root: Path) -> int | None:
    """What the memory limit of a container leaves, its page cache not counted as used; None without a limit."""
    for folder, limit, used, cached in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        values = _number(folder / limit), _number(folder / used)
        if values[0] is not None and values[1] is not None:
            return max(0, values[0] - values[1] + _counter(folder / "memory.stat", cached))
    return None


def _number(path: Path) -> int | None:
    """The integer that a file holds; None for "max", or where there is no such file."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _counter(path: Path, name: str) -> int:
    """The value after ``name`` in a file of "name value" lines; 0 where it is absent."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name), 0)


def format_bytes(count: int) -> str:
    """``count`` bytes in the unit that reads best: "7.6 MiB"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.4g} {unit}"
