"""The engine's counters at one moment, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Stats:
    """Counters since the engine was made; tokens and blocks are counts. Prints one counter a line."""

    steps: int
    """Steps run: decode steps and mixed ones (which compute prompt tokens)."""
    mixed_steps: int
    tokens_computed: int
    """Tokens whose KV was computed, prompts included, and tokens behind an end that was seen too late."""
    tokens_generated: int
    batch_histogram: Mapping[int, int]
    """Decode steps by their rows: what ``ostinato graph sizes`` reads."""
    capture_sizes: tuple[int, ...]
    """Batch sizes that have a graph."""
    replays: Mapping[int, int]
    """Graph replays per batch size, sizes without one left out."""
    prefill_replays: Mapping[int, int]
    """The same for steps with prompts, per token count."""
    padding_rows: int
    """Rows that replayed graphs computed beyond those asked for."""
    steps_without_graph: Mapping[str, int]
    """Steps that are none for a graph, per reason: with prompts, or with work that no graph can hold."""
    eager_fallbacks: Mapping[str, int]
    """Steps that ran uncompiled though they should not, per reason."""
    eager_breaks: tuple[str, ...]
    """Functions around which graphs are split."""
    launches_held_back: int
    """Times that no step was launched ahead, because what a request might draw depended on a token still in flight."""
    preemptions: int
    prefix_queries: int
    """Prompt tokens looked up in the prefix index."""
    prefix_hits: int
    """Prompt tokens found there."""
    evictions: int
    """Cached blocks that lost their content to new ones."""
    blocks_free: int
    blocks_cached: int
    blocks_used: int
    requests_running: int
    requests_waiting: int
    compiles: int
    """Compiled pieces of the step, and on a GPU compiled kernels; all of warm-up's."""
    captures: int
    """Captured graphs, all of warm-up's."""
    graph_bytes: int
    """Device memory that capturing took, measured: the graphs' pool, and what the driver keeps; 0 on a CPU."""
    compiles_after_warmup: int
    """Stays 0."""
    captures_after_warmup: int
    """Stays 0."""

    def __getitem__(self, name: str) -> Any:
        """A counter by its name."""
        if name not in {field.name for field in fields(self)}:
            raise KeyError(name)
        return getattr(self, name)

    def as_dict(self) -> dict[str, Any]:
        """All counters, for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        """One counter a line."""
        return "\n".join(f"{name:<22} {_shown(value)}" for name, value in self.as_dict().items())


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {count:,}" for key, count in value.items()) or "none"
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else f"{value:,}"
