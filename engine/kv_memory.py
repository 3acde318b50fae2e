"""The memory of an engine's KV cache: taken once, perhaps given back and taken again at the same addresses.

Owns the region under the pages. Knows neither blocks in use nor requests: whoever gives it back has seen to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ostinato.graphs.regions import Region, region_of
from ostinato.layers.errors import ConfigError
from ostinato.memory import format_bytes, free_bytes
from ostinato.models.decoder import KVCache
from ostinato.models.kv_cache import allocate_kv_cache
from ostinato.plan import Plan


class KVMemory:
    """Pages of ``num_blocks`` blocks, the plan's or more, zeroed."""

    def __init__(self, plan: Plan, num_blocks: int, asked_by: str = "kv_cache_memory") -> None:
        """``ConfigError``, by what asked, where the device has less memory than when the plan was made."""
        self._device = plan.device
        self._regions: list[Region] = []
        self.released = False
        try:
            self.cache: KVCache = allocate_kv_cache(
                plan.spec, num_blocks, plan.block_size, plan.dtype, plan.device, self._take
            )
        except torch.OutOfMemoryError as error:
            wanted = f"{format_bytes(plan.kv_cache_bytes)} on {plan.device}"
            raise ConfigError(f"{asked_by}: there is no room for {wanted} any more: {error}") from error
        self.num_bytes = sum(pages.nbytes for pair in self.cache for pages in pair)

    def release(self) -> None:
        """Give it back, and lose what it held. ``ConfigError`` where the device cannot do that. Again: no effect."""
        if not self.released:
            for region in self._regions:
                region.release()
            self.released = True

    def restore(self) -> None:
        """Take it again, zeroed. ``ConfigError`` if there is too little, and nothing is taken. Again: no effect."""
        if not self.released:
            return
        free, wanted = free_bytes(self._device), f"the KV cache needs {format_bytes(self.num_bytes)}"
        if free < self.num_bytes:
            raise ConfigError(f"wake: {wanted}; {format_bytes(free)} are free on {self._device}")
        try:
            for region in self._regions:
                region.restore()
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"wake: {wanted} on {self._device}: {error}") from error
        self.released = False

    def _take(self, sizes: Sequence[int], device: torch.device) -> Sequence[Tensor]:
        region = region_of(sizes, device)
        self._regions.append(region)
        return region.parts
