"""Making the caches of a ``ModelRunner``: how many blocks, then pages, then everything compiled and captured over them.

Owns the compiled pieces, which all caches share: the number of blocks is symbolic in them.
"""

from __future__ import annotations

import contextlib
import dataclasses

from ostinato.cache_size import blocks_of
from ostinato.config import cache_size
from ostinato.graphs.ambient import neutral_state
from ostinato.graphs.streams import DeviceStream
from ostinato.graphs.toolchain import toolchain_prepared
from ostinato.layers.errors import ConfigError
from ostinato.logit_steps import LogitSteps, new_pieces
from ostinato.memory import format_bytes, free_bytes
from ostinato.models.decode_step import StepDecoder
from ostinato.plan import Plan
from ostinato.startup import StartupProgress
from ostinato.step_pieces import StepPieces
from ostinato.warm_up import WarmUp

MANY_ELEMENTS = 1 << 31
"""Pages of a layer with as many elements need indices of 64 bits on a GPU, and code compiled for them."""


class CacheMaker:
    """Steps over new pages, as often as asked; the first time the model is compiled."""

    def __init__(self, plan: Plan, decoder: StepDecoder, stream: DeviceStream, backend: tuple[str, str | None]) -> None:
        """``backend``: who runs steps; if it is another one than planned, why."""
        self._plan, self.decoder, self._stream = plan, decoder, stream
        self._backend = backend
        self._pieces: dict[bool, StepPieces] = {}

    def make(self, num_blocks: int | None, memory: int | str | None) -> LogitSteps:
        """Warm steps over a cache of ``num_blocks`` usable blocks, or of ``memory``; nothing is left of a failure."""
        plan = self._plan_of(num_blocks, memory)
        on_cpu = plan.device.type == "cpu"
        wide = not on_cpu and _elements_of_a_layer(plan) >= MANY_ELEMENTS
        pieces, compiled = self._pieces.get(wide), plan.compiles and self._backend[1] is None
        with contextlib.ExitStack() as startup:
            progress = startup.enter_context(StartupProgress())
            startup.enter_context(neutral_state(plan.device.type))
            toolchain = startup.enter_context(toolchain_prepared(compiled and on_cpu and pieces is None))
            pieces = pieces or new_pieces(plan, self.decoder, compiled=compiled)
            steps = LogitSteps(plan, self.decoder, self._stream, pieces, self._backend)
            try:
                WarmUp(steps, progress).run(toolchain)
            except BaseException:
                steps.close()
                raise
        self._pieces[wide], self._backend = steps.pieces, (steps.backend, steps.fallback_reason)
        return steps

    def _plan_of(self, num_blocks: int | None, memory: int | str | None) -> Plan:
        """The plan with that cache, null block included."""
        if (num_blocks is None) == (memory is None):
            raise ConfigError("create_kv_cache: give num_blocks or memory, and not both")
        asked = f"{num_blocks} blocks" if memory is None else memory
        plan = self._plan
        blocks = blocks_of(cache_size("create_kv_cache", asked), plan.block_size, plan.block_bytes)
        wanted, free = blocks * plan.block_bytes, free_bytes(plan.device)
        if blocks < 2:
            least = f"{format_bytes(2 * plan.block_bytes)}, for a block of {plan.block_size} tokens and the null block"
            raise ConfigError(f"create_kv_cache: {asked} is too little, expected at least {least}")
        if wanted > free:
            raise ConfigError(f"create_kv_cache: {asked} is {format_bytes(wanted)}; {format_bytes(free)} are free")
        return dataclasses.replace(plan, num_blocks=blocks)


def _elements_of_a_layer(plan: Plan) -> int:
    """Keys, or values, of the largest."""
    per_token = max(layer.attention.num_kv_heads * layer.attention.head_dim for layer in plan.spec.layers)
    return plan.num_blocks * plan.block_size * per_token
