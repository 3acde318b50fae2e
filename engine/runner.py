"""Runs steps: packs them, replays a graph or calls the compiled pieces, and brings the tokens back.

Owns the model, the KV cache, the buffers and the graphs. Knows nothing of queues, text or who asked. Everything runs
under ``neutral_state``. Four backends do the same arithmetic: captured graphs of compiled pieces ("cuda", "host"),
compiled pieces without graphs ("compile"), plain functions ("eager"), and plain functions recorded ("emulated").
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ostinato.embedding import embed
from ostinato.graphs.ambient import neutral_state
from ostinato.graphs.compiled import trace_failure
from ostinato.graphs.graph_set import GraphSet
from ostinato.graphs.toolchain import ToolchainPreparation, cpp_compiler_problem, toolchain_failure
from ostinato.layers.errors import EngineDead
from ostinato.models.decode_step import Sampling, StepDecoder, StepModel, rope_of
from ostinato.models.decoder import KVCache
from ostinato.models.kv_cache import allocate_kv_cache, zero_null_block
from ostinato.plan import Plan
from ostinato.step import Step
from ostinato.step_buffers import StepBuffers
from ostinato.step_pieces import HINT_ROWS, HINT_WIDTH, MIN_BLOCKS, StepPieces

Progress = Callable[..., None]
"""Told what start-up is doing now, and the fraction done where that is known."""


class ModelRunner:
    """One model on one device, ready to run steps once ``warm_up`` returned."""

    def __init__(self, plan: Plan, decoder: StepDecoder) -> None:
        config = plan.config
        self.plan = plan
        self.backend, self.fallback_reason = _usable_backend(plan)
        self.counts: Counter[str] = Counter()
        with self._neutral():
            self.buffers = StepBuffers(
                config.max_num_seqs,
                config.max_num_batched_tokens,
                config.block_size,
                plan.table_width,
                plan.device,
                fixed_width=self.backend in ("cuda", "emulated"),
            )
            num_blocks = max(plan.num_blocks, MIN_BLOCKS)
            kv_cache = allocate_kv_cache(plan.spec, num_blocks, config.block_size, plan.dtype, plan.device)
            rope = rope_of(decoder, plan.max_model_len, plan.device)
        self.pieces = StepPieces(decoder, config.max_num_seqs, compiled=plan.compiles and self.fallback_reason is None)
        self.graphs: GraphSet[Sampling] | None = None
        if self.backend in ("cuda", "host", "emulated"):
            self.graphs = GraphSet(plan.capture_sizes, self.backend, plan.device)
        self._model: StepModel | None = StepModel(decoder, rope, kv_cache, self.buffers.state)
        self._warm_compiles = self._warm_captures = 0
        self._threads_differ = False

    @property
    def kv_cache(self) -> KVCache:
        """The pages, per layer."""
        return self._open_model.kv_cache

    @property
    def late_compiles(self) -> int:
        """Compilations after ``warm_up``: a broken promise if not 0."""
        return self.pieces.compiles - self._warm_compiles

    @property
    def late_captures(self) -> int:
        """Captures after ``warm_up``: a broken promise if not 0."""
        return (self.graphs.captures if self.graphs else 0) - self._warm_captures

    def warm_up(self, progress: Progress = lambda _: None, toolchain: ToolchainPreparation | None = None) -> None:
        """Compile every piece for every class of shapes, then capture every graph; afterwards nothing is compiled."""
        with self._neutral():
            if self.pieces.compiled:
                self._compile_or_fall_back(progress, toolchain)
            if self.graphs is not None:
                captures, doing = (
                    len(self.graphs.sizes) * len(Sampling),
                    f"capturing {len(self.graphs.sizes)} batch sizes",
                )
                self.graphs.capture_all(Sampling, self._step_of, lambda done: progress(doing, done / captures))
            zero_null_block(self.kv_cache)
        self._warm_compiles = self.pieces.compiles
        self._warm_captures = self.graphs.captures if self.graphs else 0

    def _compile_or_fall_back(self, progress: Progress, toolchain: ToolchainPreparation | None) -> None:
        """Compile; where the C++ compiler, or code that is not ours, is not up to it, go on without and count it."""
        try:
            try:
                self._compile(progress)
            except Exception:
                if toolchain is None or not toolchain.trust_failed():
                    raise
                self._compile(progress)
        except Exception as error:
            if (problem := toolchain_failure(error)) is not None:
                reason = _report_eager(f"the C++ compiler fails: {problem}")
            elif self.plan.model_impl == "transformers" and (problem := trace_failure(error)) is not None:
                reason = _report_eager(f"torch.compile does not take transformers' code: {problem}", advice="")
            else:
                raise
            self.backend, self.fallback_reason = "eager", reason
            self.pieces = StepPieces(self._open_model.decoder, self.plan.config.max_num_seqs, compiled=False)
            self.graphs = None

    def _compile(self, progress: Progress) -> None:
        """Run every piece once per class of shapes, on padding."""
        for rows in (HINT_ROWS, 1) if self.plan.config.max_num_seqs > 1 else (1,):
            for sampling in Sampling:
                progress(f"compiling decode, batch {'1' if rows == 1 else '2 and up'}, {sampling.value}")
                self._decode(rows, sampling, HINT_WIDTH)
        progress("compiling prompts")
        self._mixed(HINT_ROWS, HINT_WIDTH, samples=0, sampling=Sampling.GREEDY)

    def execute(self, step: Step) -> list[int]:
        """Run ``step``; the sampled token of each of its ``sample_rows``, -1 where logits were not finite."""
        samples, buffers = len(step.sample_rows), self.buffers
        with self._neutral():
            if self.pieces.lost:
                self._compile_again()
            if step.is_decode:
                buffers.pack_decode(step)
                self._run_decode(samples)
            else:
                num_tokens = buffers.pack_mixed(step)
                self._mixed(num_tokens, buffers.width, samples, buffers.sampling)
                self.counts["mixed_steps"] += 1
            tokens: list[int] = buffers.state.out[:samples].tolist()
        buffers.note_sampled(step)
        self._count(step)
        return tokens

    def _compile_again(self) -> None:
        """The host reset Dynamo: compile anew, on padding, as at warm-up; counted as late."""
        self.buffers.forget()
        self.pieces.compile_again()
        self._compile(lambda *_: None)

    def embed(self, prompts: Sequence[Sequence[int]], pooling: str, normalize: bool) -> Tensor:
        """A vector per prompt: see ``embedding.embed``."""
        plan = self.plan
        with self._neutral():
            return embed(
                self._open_model.decoder,
                prompts,
                pooling,
                normalize,
                plan.dtype,
                plan.device,
                plan.config.max_num_batched_tokens,
                plan.max_model_len,
            )

    def drop_step(self) -> None:
        """The step handed to ``execute`` did not end well: what it left on the device counts for nothing."""
        self.buffers.forget()

    def close(self) -> None:
        """Free graphs, KV cache and the hold on the model."""
        if self.graphs is not None:
            self.graphs.close()
        self._model = None
        if self.plan.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _open_model(self) -> StepModel:
        if self._model is None:
            raise EngineDead("the engine is closed")
        return self._model

    def _neutral(self) -> contextlib.AbstractContextManager[None]:
        return neutral_state(self.plan.device.type)

    def _run_decode(self, rows: int) -> None:
        if self.graphs is None:
            self._decode(rows, self.buffers.sampling, self.buffers.width)
        else:
            size = self.graphs.replay(rows, self.buffers.sampling)
            self.counts["padding_rows"] += size - rows

    def _step_of(self, rows: int, sampling: Sampling) -> Callable[[], None]:
        """The step that a graph captures; its table is as wide as the buffers say when it runs."""
        return lambda: self._decode(rows, sampling, self.buffers.width)

    def _decode(self, rows: int, sampling: Sampling, width: int) -> None:
        buffers = self.buffers
        inputs = buffers.sampling_inputs(rows)
        self._open_model.decode(self.pieces.for_rows(rows), buffers.row_inputs(rows), width, sampling, inputs)

    def _mixed(self, tokens: int, width: int, samples: int, sampling: Sampling) -> None:
        buffers = self.buffers
        self._open_model.mixed(
            self.pieces.for_tokens,
            self.pieces.for_rows(samples),
            buffers.token_inputs(tokens),
            width,
            buffers.sample_at(samples),
            buffers.sample_slot(samples),
            sampling,
            buffers.sampling_inputs(samples),
        )

    def _count(self, step: Step) -> None:
        counts = self.counts
        counts["steps"] += 1
        counts["tokens_computed"] += step.num_tokens
        counts["tokens_generated"] += len(step.sample_rows)
        if self.fallback_reason is not None:
            counts["eager_fallbacks"] += 1
        if self.plan.device.type == "cpu" and torch.get_num_threads() != self.plan.num_threads:
            self._report_threads()

    def _report_threads(self) -> None:
        """Compiled code keeps the thread count it was compiled with; say so, once."""
        if not self._threads_differ and self.pieces.compiles:
            self._threads_differ = True
            now, then = torch.get_num_threads(), self.plan.num_threads
            text = f"torch.set_num_threads({now}) after the engine was made: its compiled code keeps {then} threads"
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _usable_backend(plan: Plan) -> tuple[str, str | None]:
    """The plan's backend, or "eager" with the reason where Inductor has no C++ compiler to work with."""
    if plan.device.type != "cpu" or not plan.compiles:
        return plan.backend, None
    problem = cpp_compiler_problem()
    if problem is None:
        return plan.backend, None
    return "eager", _report_eager(f"no C++ compiler: {problem}")


def _report_eager(reason: str, advice: str = "Install g++ or clang++ (and Python's headers), or set CXX; ") -> str:
    """Warn that nothing is compiled, and why; returns ``reason``."""
    text = f"ostinato runs uncompiled, several times slower: {reason}. {advice}execution='eager' silences this."
    warnings.warn(text, RuntimeWarning, stacklevel=2)
    return reason
