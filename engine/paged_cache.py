"""A KV cache whose blocks belong to the caller: how many there are, how large, and copies between them.

Made by ``ModelRunner.create_kv_cache``. Counts no references and knows no sequence: whoever hands out blocks does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import torch

from ostinato.graphs.ambient import neutral_state
from ostinato.layers.errors import ParamError
from ostinato.logit_steps import LogitSteps
from ostinato.models.decoder import KVCache
from ostinato.row_checks import Limits, integers


class PagedCache:
    """Blocks 1 to ``num_blocks`` of ``block_size`` tokens each. Block 0 is the null block: padding is written there.

    It has its own graphs, since they hold the addresses of its pages; ``close()`` frees both.
    """

    def __init__(self, steps: LogitSteps, lock: threading.RLock) -> None:
        """``lock``: of the runner; one call at a time."""
        self.steps = steps
        self._lock = lock
        plan = steps.plan
        self.block_size: int = plan.block_size
        self.num_blocks: int = plan.num_blocks - 1
        self.num_bytes: int = plan.kv_cache_bytes
        self.limits = Limits.of(plan)
        self.closed = False

    @property
    def blocks(self) -> range:
        """Every block that is the caller's to hand out."""
        return range(1, self.num_blocks + 1)

    @property
    def pages(self) -> KVCache:
        """Keys and values per layer, ``[num_blocks + 1, block_size, num_kv_heads, head_dim]`` each, or more blocks.

        The memory itself: to be looked at between calls, or written where no row reads.
        """
        return self.steps.kv_cache

    @property
    def replays(self) -> dict[int, int]:
        """How often the graph of each batch size served a ``decode``."""
        return dict(self.steps.graphs.decode.replays)

    def copy_blocks(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy (source, target) blocks, all read before any is written: for copy-on-write. ``ParamError`` if bad."""
        listed = list(pairs)
        if any(np.shape(pair) != (2,) for pair in listed):
            raise ParamError("copy_blocks: expected (source, target) pairs of blocks")
        flat = integers("copy_blocks: blocks", [block for pair in listed for block in pair])
        for block in flat[(flat < 1) | (flat > self.num_blocks)]:
            raise ParamError(f"copy_blocks: block {block}; the cache has 1 to {self.num_blocks:,}")
        sources, targets = flat[::2].copy(), flat[1::2].copy()
        if len(set(targets.tolist())) != len(targets):
            raise ParamError("copy_blocks: two copies have one target")
        device = self.steps.plan.device
        with self._lock, neutral_state(device.type):
            self.steps.copy_blocks(torch.from_numpy(sources).to(device), torch.from_numpy(targets).to(device))

    def close(self) -> None:
        """Free the pages and their graphs; later calls with this cache raise ``EngineDead``. Again: no effect."""
        with self._lock:
            self.closed = True
            self.steps.close()
