"""Getting a runner ready: every piece compiled once for each class of shapes, every graph captured, all on padding.

On a CPU a piece is compiled with the smallest sizes of its class. On a GPU it is compiled with the largest: Inductor
chooses 32-bit indices by the sizes it sees, nothing checks them later, and the largest step shows what it needs of
memory. Knows the order of things and what to do when one fails; the runner knows how a step is run.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection
from typing import Protocol

import torch
from torch import Tensor

from ostinato.graphs.compiled import trace_failure
from ostinato.graphs.graph_set import GraphSet, out_of_memory
from ostinato.graphs.streams import DeviceStream
from ostinato.graphs.toolchain import ToolchainPreparation, cpp_compiler_problem, toolchain_failure
from ostinato.layers.errors import ConfigError
from ostinato.layers.kernels.availability import triton_problem
from ostinato.memory import format_bytes
from ostinato.models.decode_step import StepDecoder, StepModel
from ostinato.models.decoder import KVCache
from ostinato.models.kv_cache import zero_null_block
from ostinato.models.step_inputs import Sampling
from ostinato.plan import Plan
from ostinato.step_graphs import StepGraphs
from ostinato.step_pieces import HINT_ROWS, HINT_WIDTH, StepPieces

Progress = Callable[..., None]
"""Told what start-up is doing now, and the fraction done where that is known."""


class Runner(Protocol):
    """What is warmed up: an engine's ``StepRunner``, or the ``LogitSteps`` of a cache."""

    plan: Plan
    stream: DeviceStream
    pieces: StepPieces
    graphs: StepGraphs
    backend: str
    fallback_reason: str | None
    width: int
    activation_bytes: int | None
    graph_bytes: int

    @property
    def kinds(self) -> tuple[Sampling, ...]:
        """Amounts of sampling work, each of which is captured."""

    @property
    def compiled_kinds(self) -> tuple[Sampling, ...]:
        """Those of ``kinds`` that between them run every piece there is."""

    @property
    def kv_cache(self) -> KVCache:
        """The pages, per layer."""

    @property
    def open_model(self) -> StepModel:
        """The model with its cache."""

    def new_pieces(self, decoder: StepDecoder, *, compiled: bool) -> StepPieces:
        """Its functions, compiled or not."""

    def run_decode(self, rows: int, sampling: Sampling, width: int) -> None:
        """Run a decode step on what the static inputs hold."""

    def run_mixed(self, tokens: int, width: int, rows: int, sampling: Sampling, host: Tensor | None) -> None:
        """Run a mixed step on what the static inputs hold; ``rows`` sample."""


class WarmUp:
    """One warm-up of one runner."""

    def __init__(self, runner: Runner, progress: Progress) -> None:
        self.runner = runner
        self.progress = progress
        self.on_gpu = runner.plan.device.type == "cuda"

    def run(self, toolchain: ToolchainPreparation | None) -> None:
        """Compile, capture, and leave nothing but zeros in the null block; ``ConfigError`` if memory is short."""
        runner = self.runner
        runner.stream.follow()  # weights and caches were made on the caller's stream
        try:
            if runner.pieces.compiled:
                self._compile_or_fall_back(toolchain)
            elif self.on_gpu:
                self.compile()  # our kernels are, and the largest step must fit
            self._measure()
        except Exception as error:
            if (reason := out_of_memory(error)) is None:
                raise
            raise ConfigError(self._too_little_memory(reason)) from error
        self._capture()
        self._submit(lambda: zero_null_block(runner.kv_cache))

    def compile(self) -> None:
        """Run every piece once per class of shapes, on padding."""
        runner = self.runner
        for rows in (self._hint_rows(), 1) if runner.plan.config.max_num_seqs > 1 else (1,):
            for kind in runner.compiled_kinds:
                self.progress(f"compiling decode, batch {'1' if rows == 1 else '2 and up'}, {kind.value}")
                self._submit(functools.partial(runner.run_decode, rows, kind, self._width()))
        self.progress("compiling prompts")
        self._submit(self._largest_step())

    def _largest_step(self) -> Callable[[], None]:
        """A mixed step that is as large as one can be on a GPU, and as small as one can be elsewhere."""
        runner, tokens = self.runner, self._hint_tokens()
        samples = runner.plan.config.max_num_seqs if self.on_gpu else 0
        host, most_work = self._bounds(tokens), runner.kinds[-1] if self.on_gpu else Sampling.GREEDY
        return lambda: runner.run_mixed(tokens, self._width(), samples, most_work, host)

    def _measure(self) -> None:
        """What the largest step allocates at its peak, all compiled; torch's own record of the peak begins anew."""
        if not self.on_gpu:
            return
        device = self.runner.plan.device
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        self._submit(self._largest_step())
        self.runner.activation_bytes = torch.cuda.max_memory_allocated(device) - before

    def _compile_or_fall_back(self, toolchain: ToolchainPreparation | None) -> None:
        """Compile; where the C++ compiler, or code that is not ours, is not up to it, go on without and count it."""
        runner = self.runner
        try:
            try:
                self.compile()
            except Exception:
                if toolchain is None or not toolchain.trust_failed():
                    raise
                self.compile()
        except Exception as error:
            if (problem := toolchain_failure(error)) is not None:
                reason = report_eager(f"the C++ compiler fails: {problem}")
            elif runner.plan.model_impl == "transformers" and (problem := trace_failure(error)) is not None:
                reason = report_eager(f"torch.compile does not take transformers' code: {problem}", advice="")
            else:
                raise
            runner.backend, runner.fallback_reason = "eager", reason
            runner.pieces = runner.new_pieces(runner.open_model.decoder, compiled=False)
            runner.graphs = StepGraphs(runner.plan, runner.stream, captured=False)

    def _capture(self) -> None:
        runner = self.runner
        runner.stream.empty_cache()
        before = runner.stream.bytes_in_use()
        self._capture_set(runner.graphs.decode, self._decode_step)
        self._capture_set(runner.graphs.prefill, self._prefill_step)
        runner.stream.empty_cache()
        runner.graph_bytes = max(0, runner.stream.bytes_in_use() - before)

    def _capture_set(self, graphs: GraphSet[Sampling], step_of: Callable[[int, Sampling], Callable[[], None]]) -> None:
        captures = len(graphs.sizes) * len(self.runner.kinds)
        doing = f"capturing {len(graphs.sizes)} {graphs.sizes_are}"
        if captures:
            self.progress(doing, 0.0)
        graphs.capture_all(self.runner.kinds, step_of, lambda done: self.progress(doing, done / captures))
        if graphs.dropped:
            sizes, reason = ", ".join(map(str, sorted(graphs.dropped))), next(iter(graphs.dropped.values()))
            text = f"no graphs for {graphs.sizes_are} {sizes}, such steps run slower: {reason}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _decode_step(self, rows: int, sampling: Sampling) -> Callable[[], None]:
        """The step that a graph captures; its table is as wide as the runner says when it runs."""
        return lambda: self.runner.run_decode(rows, sampling, self.runner.width)

    def _prefill_step(self, tokens: int, sampling: Sampling) -> Callable[[], None]:
        runner, bounds = self.runner, self._bounds(tokens)
        width, rows = runner.plan.table_width, runner.graphs.prefill_rows
        return lambda: runner.run_mixed(tokens, width, rows, sampling, bounds)

    def _bounds(self, tokens: int) -> Tensor | None:
        """What ``AttentionMetadata.host`` may say of any step with that many tokens; None where steps have none."""
        if self.runner.stream.shares_memory:
            return None
        return torch.tensor([tokens, self.runner.plan.max_model_len, 1], dtype=torch.int64)

    def _submit(self, work: Callable[[], None]) -> None:
        self.runner.stream.submit(work).wait()

    def _width(self) -> int:
        return self.runner.plan.table_width if self.on_gpu else HINT_WIDTH

    def _hint_rows(self) -> int:
        if not self.on_gpu:
            return HINT_ROWS
        return _apart(self.runner.plan.config.max_num_seqs, self._other_sizes())

    def _hint_tokens(self) -> int:
        if not self.on_gpu:
            return HINT_ROWS
        return _apart(max(2, self.runner.plan.config.max_num_batched_tokens), self._other_sizes())

    def _other_sizes(self) -> set[int]:
        """Symbolic sizes beside the rows or tokens: blocks, and the width of the table."""
        return {self.runner.kv_cache[0][0].shape[0], self.runner.plan.table_width}

    def _too_little_memory(self, reason: str) -> str:
        plan = self.runner.plan
        config = plan.config
        asked = (
            f"weights {format_bytes(plan.weight_bytes)}, KV cache {format_bytes(plan.kv_cache_bytes)}, and a step of "
            f"max_num_batched_tokens = {config.max_num_batched_tokens:,} tokens, max_num_seqs = {config.max_num_seqs:,}"
        )
        return f"{plan.device} has too little memory for {asked}: {reason}; lower one of these or kv_cache_memory"


def _apart(size: int, others: Collection[int]) -> int:
    """``size``, or the next smaller one that is none of ``others``, as long as it is at least 2."""
    while size in others and size > 2:
        size -= 1
    return size


def usable_backend(plan: Plan) -> tuple[str, str | None]:
    """The plan's backend, or "eager" with the reason where Inductor lacks what it compiles with."""
    if not plan.compiles:
        return plan.backend, None
    if plan.device.type == "cuda":
        problem = triton_problem(plan.device)
        return (plan.backend, None) if problem is None else ("eager", report_eager(problem, advice=""))
    problem = cpp_compiler_problem()
    return (plan.backend, None) if problem is None else ("eager", report_eager(f"no C++ compiler: {problem}"))


def report_eager(reason: str, advice: str = "Install g++ or clang++ (and Python's headers), or set CXX; ") -> str:
    """Warn that nothing is compiled, and why; returns ``reason``."""
    text = f"ostinato runs uncompiled, several times slower: {reason}. {advice}execution='eager' silences this."
    warnings.warn(text, RuntimeWarning, stacklevel=2)
    return reason
