"""``ModelRunner``: a checkpoint for programs that schedule by themselves.

They own sequences and blocks; this owns the weights, the compiled pieces, the graphs and the memory of KV caches. Sits
beside ``LLM``: the same plan, weights, pieces and graphs, with the caller in the scheduler's place. Keeps nothing of a
sequence between calls.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor

from ostinato.cache_maker import CacheMaker
from ostinato.config import EngineConfig
from ostinato.embedding import Pooling, check_pooling, embed
from ostinato.graphs.ambient import neutral_state
from ostinato.graphs.streams import stream_of
from ostinato.layers.errors import ConfigError, EngineDead, ParamError
from ostinato.load import load_decoder
from ostinato.logit_picks import LogitPositions, picks_of
from ostinato.logit_steps import LogitSteps, StepOutput
from ostinato.models.checkpoint import read_config
from ostinato.paged_cache import PagedCache
from ostinato.param_checks import nearest
from ostinato.plan import Plan, plan_without_cache
from ostinato.row_batch import split
from ostinato.row_checks import Limits, check_prompts, make_batch, make_decode_batch, rows_of
from ostinato.startup import StartupProgress
from ostinato.warm_up import usable_backend

OPTIONS = (
    *("revision", "device", "dtype", "max_num_seqs", "max_model_len", "max_num_batched_tokens", "block_size"),
    *("execution", "capture_sizes", "prefill_capture_sizes", "attention_backend", "model_impl"),
)
"""Of ``EngineConfig``: those that say how a step is run. ``max_num_seqs`` is the most rows of one ``decode``."""


class ModelRunner:
    """A loaded model and its caches. Use it in a ``with`` or ``close()`` it.

    Methods may be called from any thread; they take turns, and return when their work is done. ``plan`` is what the
    options came to.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        """Load a checkpoint. Options: ``OPTIONS``. ``ConfigError``, ``ModelLoadError`` come before memory is taken."""
        self._lock = threading.RLock()
        with StartupProgress() as progress:
            progress("reading the checkpoint")
            self.plan: Plan = _planned(model, options)
            backend = usable_backend(self.plan)
            decoder = load_decoder(self.plan, read_config(self.plan.folder), progress)
        self._stream = stream_of(self.plan.device, emulate=backend[0] == "emulated")
        self._maker: CacheMaker | None = CacheMaker(self.plan, decoder, self._stream, backend)
        self._caches: list[PagedCache] = []

    def create_kv_cache(self, num_blocks: int | None = None, *, memory: int | str | None = None) -> PagedCache:
        """A cache of ``num_blocks`` blocks, or of ``memory``: bytes, ``"2GiB"`` or ``"4096 tokens"``; and its graphs.

        The first one compiles the model. ``ConfigError`` names what is asked for and what there is.
        """
        with self._lock:
            cache = PagedCache(self._open_maker().make(num_blocks, memory), self._lock)
            self._caches = [*(other for other in self._caches if not other.closed), cache]
            return cache

    def prefill(
        self,
        cache: PagedCache,
        prompts: Sequence[Any],
        block_tables: Sequence[Any],
        start: int | Sequence[int] = 0,
        logit_positions: LogitPositions = "last",
    ) -> StepOutput:
        """Compute tokens of one prompt or many, and store their keys and values in the blocks of their tables.

        ``prompts``: token ids, or a list of them: row r holds the tokens from position ``start[r]`` on of its sequence,
        and ``block_tables[r]`` that sequence's blocks from position 0 on; what precedes ``start[r]`` was computed
        before. ``logit_positions``: the "last" of each row, "all", or for each row a list of positions. More than
        ``max_num_batched_tokens`` tokens or ``max_num_seqs`` rows are done in several steps. The outputs are the
        caller's own. ``ParamError`` names row, position and block, before anything is launched.
        """
        with self._turn(cache) as steps:
            rows, one = rows_of(prompts)
            starts = [start] * len(rows) if isinstance(start, int) else start
            batch = make_batch(cache.limits, rows, starts, [block_tables] if one else block_tables)
            flat = one and not isinstance(logit_positions, str)
            picks = picks_of(batch, [logit_positions] if flat else logit_positions)
            config, done = self.plan.config, 0
            out = steps.new_output(sum(map(len, picks)))
            for piece, picked in split(batch, picks, config.max_num_seqs, config.max_num_batched_tokens):
                until = done + len(picked)
                steps.prefill(piece, picked, out.logits[done:until], out.tokens[done:until])
                done = until
            return StepOutput(out.logits, out.tokens.cpu())

    def decode(
        self, cache: PagedCache, token_ids: Sequence[int], positions: Sequence[int], block_tables: Sequence[Any]
    ) -> StepOutput:
        """One token for each of up to ``max_num_seqs`` rows: its id, its position, and its sequence's block table.

        Replays the graph of the smallest captured size that holds the rows. ``logits`` are valid until the next call
        with ``cache``; ``tokens`` stay. ``ParamError`` names row, position and block, before anything is launched.
        """
        with self._turn(cache) as steps:
            most = self.plan.config.max_num_seqs
            return steps.decode(make_decode_batch(cache.limits, token_ids, positions, block_tables, most))

    def embed(self, prompts: Sequence[Any], pooling: Pooling = "last", normalize: bool = True) -> Tensor:
        """A vector per prompt of token ids, ``[prompts, hidden_size] float32`` on the CPU; uses no cache.

        As ``LLM.embed``: the final hidden state of the "last" or the first ("cls") token, or the "mean" of all.
        """
        check_pooling(pooling)
        plan = self.plan
        ids = check_prompts(Limits.of(plan), rows_of(prompts)[0])
        most, longest = plan.config.max_num_batched_tokens, plan.max_model_len
        with self._lock, neutral_state(plan.device.type):
            return embed(self._open_maker().decoder, ids, pooling, normalize, plan.dtype, plan.device, most, longest)

    def close(self) -> None:
        """Free caches, graphs and weights; later calls raise ``EngineDead``. Again: no effect."""
        with self._lock, contextlib.ExitStack() as last_first:
            last_first.callback(self._stream.close)
            last_first.callback(setattr, self, "_maker", None)
            for cache in self._caches:
                last_first.callback(cache.close)
            self._caches = []

    def __enter__(self) -> ModelRunner:
        """The runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """``close()``."""
        self.close()

    @contextlib.contextmanager
    def _turn(self, cache: PagedCache) -> Iterator[LogitSteps]:
        """One caller at a time, with an open cache of this runner's."""
        with self._lock, neutral_state(self.plan.device.type):
            if not isinstance(cache, PagedCache):
                raise ParamError(f"cache: expected what create_kv_cache gave, got {type(cache).__name__}")
            if cache.closed:
                raise EngineDead("the KV cache is closed")
            if cache not in self._caches:
                raise ParamError("cache: it was made by another ModelRunner")
            yield cache.steps

    def _open_maker(self) -> CacheMaker:
        if self._maker is None:
            raise EngineDead("the runner is closed")
        return self._maker


def _planned(model: str | os.PathLike[str], options: dict[str, Any]) -> Plan:
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(f"ModelRunner: unknown option {name!r}{nearest(name, OPTIONS)}")
    return plan_without_cache(EngineConfig(model, **options))
