"""Runs steps: packs them, launches a graph or the compiled pieces, and brings the tokens back when they are there.

Owns the model, the KV cache, the buffers, the graphs and the device's stream. Knows nothing of queues, text or who
asked. What it launches runs under ``neutral_state``. Four backends do the same arithmetic: captured graphs of compiled
pieces ("cuda", "host"), compiled pieces without graphs ("compile"), plain functions ("eager"), and plain functions
recorded ("emulated").

A step is launched and collected: on a GPU the next one is packed and launched before the tokens of the last are on the
host. One launch is one submission to the stream: inputs over, the step, its tokens back.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.embedding import embed
from ostinato.graphs.ambient import neutral_state
from ostinato.graphs.streams import DeviceStream, Event, stream_of
from ostinato.graphs.toolchain import ToolchainPreparation
from ostinato.kv_memory import KVMemory
from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.errors import EngineDead
from ostinato.layers.logit_edits import EditInputs
from ostinato.layers.logprobs import Probes
from ostinato.layers.sampler import SamplingInputs
from ostinato.memory import MemoryUse, weight_bytes
from ostinato.models.decode_step import StepDecoder, StepModel, head
from ostinato.models.decoder import KVCache
from ostinato.models.rope_tables import rope_of
from ostinato.models.step_inputs import BY_KERNELS, BY_PASSES, CAPTURED, Sampling
from ostinato.plan import Plan
from ostinato.probe_buffers import ProbedPrompt, keep_prompts, keep_sampled
from ostinato.promises import Promises
from ostinato.step import Step
from ostinato.step_buffers import PackedStep, StepBuffers
from ostinato.step_extras import NOTHING, StepExtras, extras_of
from ostinato.step_graphs import StepGraphs
from ostinato.step_pieces import MIN_BLOCKS, StepPieces
from ostinato.warm_up import Progress, WarmUp, usable_backend


@dataclass(frozen=True)
class Flight:
    """A launched step: ``tokens [rows that sample] int64`` on the host hold what it sampled once ``done``."""

    tokens: Tensor
    done: Event
    step: Step
    probes: Probes | None = None
    """Of a step that samples with logprobs: what it said of each of ``tokens``."""
    prompts: Sequence[ProbedPrompt] = ()


class StepRunner:
    """One model on one device, ready to run steps once ``warm_up`` returned."""

    def __init__(self, plan: Plan, decoder: StepDecoder, stream: DeviceStream | None = None) -> None:
        """``stream``: where the work goes, by default one of the plan's device."""
        config = plan.config
        self.plan = plan
        self.backend, self.fallback_reason = usable_backend(plan)
        self.stream = stream or stream_of(plan.device, emulate=self.backend == "emulated")
        self.kernels = plan.attention.backend is not AttentionBackend.TORCH
        recorded = self.backend in ("cuda", "emulated")
        self.kinds = BY_KERNELS if self.kernels else CAPTURED if recorded else BY_PASSES
        self.compiled_kinds = self.kinds if self.kernels else self.kinds[-1:]  # the last one makes all passes
        self.counts: Counter[str] = Counter()
        with self._neutral():
            self.buffers = StepBuffers(
                config.max_num_seqs,
                config.max_num_batched_tokens,
                plan.block_size,
                plan.table_width,
                plan.spec.vocab_size,
                self.stream,
                fixed_width=self.backend in ("cuda", "emulated") or self.kernels,
                kinds=self.kinds,
            )
            self._memory: KVMemory | None = KVMemory(plan, max(plan.num_blocks, MIN_BLOCKS))
            rope = rope_of(decoder, plan.max_model_len, plan.device)
            self._results = [self.stream.staging(8 * config.max_num_seqs).view(torch.int64) for _ in range(2)]
        self.width = plan.table_width
        """Cells of the block table that a host graph reads in its next replay; others read the whole table."""
        self._launches = 0
        self.pieces = self.new_pieces(decoder, compiled=plan.compiles and self.fallback_reason is None)
        self.graphs = StepGraphs(plan, self.stream, captured=plan.captures and self.fallback_reason is None)
        pages, state = self._memory.cache, self.buffers.state
        self._model: StepModel | None = StepModel(decoder, rope, pages, state, plan.attention.backend)
        self.activation_bytes: int | None = None
        self.graph_bytes = 0
        self.promises = Promises()
        self._threads_differ = False

    @property
    def max_in_flight(self) -> int:
        """Steps that may be launched before the first of them is collected."""
        return 1 if self.stream.shares_memory else 2

    @property
    def must_compile(self) -> bool:
        """Whether the next launch begins by compiling: the host threw the compiled forms away."""
        return self.pieces.lost

    @property
    def kv_cache(self) -> KVCache:
        """The pages, per layer."""
        return self.open_model.kv_cache

    @property
    def kv_memory(self) -> KVMemory:
        """What lies under the pages; ``EngineDead`` after ``close``."""
        if self._memory is None:
            raise EngineDead("the engine is closed")
        return self._memory

    @property
    def compiles(self) -> int:
        """Compiled pieces so far, and kernels that were compiled in warm-up or by a launch of this engine."""
        return self.pieces.compiles + self.promises.kernel_compiles

    @property
    def late(self) -> tuple[int, int]:
        """Compilations and captures after ``warm_up``: broken promises if not 0."""
        return self.promises.late(self.pieces.compiles, self.graphs.captures)

    @property
    def memory(self) -> MemoryUse:
        """What the engine holds on its device."""
        model, kv_memory = self.open_model, self.kv_memory
        tables = [table for rotation in model.rope.tables for table in rotation if table is not None]
        return MemoryUse(
            weights=weight_bytes(model.decoder, self.plan.weight_bytes),
            kv_cache=0 if kv_memory.released else kv_memory.num_bytes,
            tables=sum(table.nbytes for table in (*tables, model.state.block_table)),
            activations=self.activation_bytes,
            logits=self.plan.logit_bytes,
            sampling=self.buffers.edits.num_bytes,
            graphs=self.graph_bytes,
            planned=self.plan.memory,
        )

    @property
    def fallbacks(self) -> dict[str, int]:
        """Steps that ran as they should not, per reason."""
        eager = {self.fallback_reason: self.counts["eager_fallbacks"]} if self.fallback_reason else {}
        return eager | self.graphs.fallbacks

    def new_pieces(self, decoder: StepDecoder, *, compiled: bool) -> StepPieces:
        """The functions of a step for this device, each of which its first call compiles."""
        on_gpu = self.plan.device.type == "cuda"
        rows = self.plan.config.max_num_seqs
        return StepPieces(decoder, rows, compiled=compiled, on_gpu=on_gpu, kernels=self.kernels)

    def warm_up(self, progress: Progress = lambda *_: None, toolchain: ToolchainPreparation | None = None) -> None:
        """Compile every piece for every class of shapes, then capture every graph; afterwards nothing is compiled."""
        with self._neutral(), self.promises.warming():
            WarmUp(self, progress).run(toolchain)
        self.promises.begin(self.pieces.compiles, self.graphs.captures, self.named_tensors())

    def launch(self, step: Step) -> Flight:
        """Queue ``step`` on the device; returns at once where the device works on its own."""
        with self._neutral():
            if self.must_compile:
                self._compile_again()
            if self.plan.config.debug:
                self.promises.check(self.pieces.compiles, self.graphs.captures, self.named_tensors())
            extras = extras_of(step, self.buffers.probes, functools.partial(head, self.open_model.decoder))
            size = self.graphs.size_of(step, extras.reason)
            packed = self.buffers.pack(step, (size or 0) if not step.is_decode else 0)
            work = self._work(packed, size, extras)
            self._launches += 1
            tokens = self._results[self._launches % len(self._results)][: packed.rows]
            out = self.buffers.state.out[: packed.rows]
            probes, bring = self._probes(packed)

            def run() -> None:
                packed.upload()
                work()
                tokens.copy_(out, non_blocking=True)
                bring()

            before = self.promises.forms()
            done = self.stream.submit(run)
            self.promises.kernel_compiles += self.promises.forms() - before
        self.buffers.launched(step, packed, done)
        self._watch()
        return Flight(tokens, done, step, probes, extras.prompts)

    def collect(self, flight: Flight) -> list[int]:
        """The tokens that a launched step sampled, -1 where logits were not finite; waits for them.

        What its requests asked to know of tokens is theirs then.
        """
        flight.done.wait()
        if flight.probes is not None:
            keep_sampled(flight.step, flight.probes)
        keep_prompts(flight.prompts)
        tokens: list[int] = flight.tokens.tolist()
        return tokens

    def embed(self, prompts: Sequence[Sequence[int]], pooling: str, normalize: bool) -> Tensor:
        """A vector per prompt: see ``embedding.embed``."""
        plan = self.plan
        with self._neutral():
            return embed(
                self.open_model.decoder,
                prompts,
                pooling,
                normalize,
                plan.dtype,
                plan.device,
                plan.config.max_num_batched_tokens,
                plan.max_model_len,
            )

    def drop_steps(self) -> None:
        """Steps that were launched, or about to be, did not end well: nothing they left on the device counts."""
        with self._neutral():
            self.buffers.forget()

    def release_pages(self) -> None:
        """Give the KV memory back, with nothing in flight; ``ConfigError`` where the device cannot do that."""
        self.stream.synchronize()
        self.kv_memory.release()
        self.stream.empty_cache()

    def restore_pages(self) -> None:
        """Take it again, zeroed, where the graphs look for it; ``ConfigError`` if there is too little."""
        with self._neutral():
            self.kv_memory.restore()
            self.stream.follow()

    def close(self) -> None:
        """Free graphs, KV cache and the hold on the model; all of it, whatever goes wrong on the way."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self.stream.close)
            last_first.callback(setattr, self, "_memory", None)
            last_first.callback(setattr, self, "_model", None)
            last_first.callback(self.graphs.close)
            last_first.callback(self.stream.synchronize)

    @property
    def open_model(self) -> StepModel:
        """The model with its cache; ``EngineDead`` after ``close``."""
        if self._model is None:
            raise EngineDead("the engine is closed")
        return self._model

    # One step's work.

    def _probes(self, packed: PackedStep) -> tuple[Probes | None, Callable[[], None]]:
        """Where the host finds how likely the step's tokens were, and what brings it there."""
        if not packed.sampling.probes:
            return None, lambda: None
        return self.buffers.probes.results(packed.rows, self._launches)

    def _work(self, packed: PackedStep, size: int | None, extras: StepExtras) -> Callable[[], None]:
        """What to submit for a packed step, with all that it depends on bound now: it may run later.

        ``size``: of the graph that serves it, if one does.
        """
        rows, sampling, width = packed.rows, packed.sampling, packed.width
        if packed.tokens and size is not None:
            return functools.partial(self.graphs.prefill.replay, size, sampling)
        if packed.tokens:
            return functools.partial(self.run_mixed, packed.tokens, width, rows, sampling, packed.host, extras)
        if size is None:
            return functools.partial(self.run_decode, rows, sampling, width, extras)
        self.counts["padding_rows"] += size - rows
        return functools.partial(self._replay, size, sampling, width)

    def _replay(self, size: int, sampling: Sampling, width: int) -> None:
        self.width = width
        self.graphs.decode.replay(size, sampling)

    def run_decode(self, rows: int, sampling: Sampling, width: int, extras: StepExtras = NOTHING) -> None:
        """Run a decode step's pieces on what the static inputs hold."""
        inputs = *self._sampling_inputs(rows, sampling), extras.process
        self.open_model.decode(self.pieces.for_rows(rows), self.buffers.row_inputs(rows), width, sampling, *inputs)

    def run_mixed(
        self,
        tokens: int,
        width: int,
        rows: int,
        sampling: Sampling,
        host: Tensor | None,
        extras: StepExtras = NOTHING,
    ) -> None:
        """Run a mixed step's pieces on what the static inputs hold; ``rows`` sample."""
        buffers = self.buffers
        self.open_model.mixed(
            self.pieces.for_tokens,
            self.pieces.for_rows(rows),
            buffers.token_inputs(tokens, host),
            width,
            buffers.sample_at(rows),
            buffers.sample_slot(rows),
            sampling,
            *self._sampling_inputs(rows, sampling),
            extras.process,
            extras.watch,
        )

    def _sampling_inputs(self, rows: int, sampling: Sampling) -> tuple[SamplingInputs, EditInputs | None]:
        buffers = self.buffers
        return buffers.sampling_inputs(rows), buffers.edit_inputs(rows) if sampling.edits else None

    # What is watched.

    def _compile_again(self) -> None:
        """The host reset Dynamo: compile anew, on padding, as at warm-up; counted as late."""
        self.buffers.forget()
        self.pieces.compile_again()
        WarmUp(self, lambda *_: None).compile()

    def named_tensors(self) -> dict[str, Tensor]:
        """Everything that graphs read or write by address, but for what a module keeps outside of torch's registry."""
        model = self.open_model
        named = {
            f"kv_cache.{i}.{'kv'[j]}": pages for i, pair in enumerate(model.kv_cache) for j, pages in enumerate(pair)
        }
        named |= {f"inputs.{name}": tensor for name, tensor in self.buffers.named_tensors().items()}
        for i, tables in enumerate(model.rope.tables):
            named |= {f"rope.{i}.{name}": table for name, table in tables._asdict().items() if table is not None}
        if isinstance(model.decoder, torch.nn.Module):
            named |= {f"weights.{name}": parameter for name, parameter in model.decoder.named_parameters()}
            named |= {f"buffers.{name}": buffer for name, buffer in model.decoder.named_buffers()}
        return named

    def _watch(self) -> None:
        """After a launch: count what ran as it should not."""
        if self.fallback_reason is not None:
            self.counts["eager_fallbacks"] += 1
        if self.plan.device.type == "cpu" and torch.get_num_threads() != self.plan.num_threads:
            self._report_threads()

    def _report_threads(self) -> None:
        """Compiled code keeps the thread count it was compiled with; say so, once."""
        if not self._threads_differ and self.pieces.compiles:
            self._threads_differ = True
            now, then = torch.get_num_threads(), self.plan.num_threads
            text = f"torch.set_num_threads({now}) after the engine was made: its compiled code keeps {then} threads"
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _neutral(self) -> contextlib.AbstractContextManager[None]:
        return neutral_state(self.plan.device.type)
