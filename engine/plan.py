"""What an engine will be, resolved from its options, the checkpoint and the machine before anything is allocated.

Owns the arithmetic of memory: how many blocks there are and how long a request may be. A plan is frozen and prints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ostinato.attention_choice import Attention, choose_attention
from ostinato.cache_size import blocks_of
from ostinato.config import EngineConfig
from ostinato.edit_buffers import edit_table_bytes
from ostinato.graphs.buckets import check_sizes, default_sizes
from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.attention.metadata import MIN_CELLS
from ostinato.layers.errors import ConfigError
from ostinato.memory import MemoryUse, format_bytes, free_bytes
from ostinato.models.checkpoint import read_config, resolve_model
from ostinato.models.implementation import describe
from ostinato.models.spec import ModelSpec
from ostinato.window import blocks_behind, blocks_for, blocks_to_progress, most_blocks

PREFILL_SIZES = (16, 32, 64, 128, 256)
"""Token counts of captured steps with prompts, where the caller names none."""


@dataclass(frozen=True)
class Plan:
    """Everything resolved: types, sizes in tokens and blocks, memory in bytes; notes where it is not what was asked.

    ``window``: tokens behind which KV blocks are given back; None if a layer sees more, or no request is that long.
    """

    config: EngineConfig
    folder: Path
    model_impl: str
    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    num_threads: int
    attention: Attention
    block_size: int
    max_model_len: int
    window: int | None
    num_blocks: int
    capture_sizes: tuple[int, ...]
    prefill_capture_sizes: tuple[int, ...]
    num_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    free_bytes: int
    notes: tuple[str, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block over all layers."""
        return self.kv_bytes_per_token * self.block_size

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of the whole KV cache, null block included."""
        return self.num_blocks * self.block_bytes

    @property
    def logit_bytes(self) -> int:
        """Bytes of the logits of a full batch."""
        return self.config.max_num_seqs * self.spec.vocab_size * self.dtype.itemsize

    @property
    def memory(self) -> MemoryUse:
        """What will be taken of the device, as far as it can be known: ``llm.memory`` is what was."""
        ropes = {layer.attention.rope for layer in self.spec.layers} - {None}
        per_position = sum(4 * rope.rotary_dim for rope in ropes if rope is not None)
        block_table = 4 * (self.config.max_num_seqs + 1) * self.table_width
        on_gpu = self.device.type == "cuda"
        return MemoryUse(
            weights=self.weight_bytes,
            kv_cache=self.kv_cache_bytes,
            tables=self.max_model_len * per_position + block_table,
            activations=None,
            logits=self.logit_bytes,
            sampling=edit_table_bytes(self.config.max_num_seqs, self.spec.vocab_size),
            graphs=None if on_gpu and self.captures else 0,
        )

    @property
    def table_width(self) -> int:
        """Cells of one request's block table."""
        return max(MIN_CELLS, blocks_for(self.max_model_len, self.block_size))

    @property
    def backend(self) -> str:
        """Who runs a decode step: "cuda", "host" or "emulated" graphs, "compile" or "eager" without any."""
        execution = self.config.execution
        if execution == "graph":
            return "cuda" if self.device.type == "cuda" else "host"
        return "emulated" if execution == "emulate" else execution

    @property
    def captures(self) -> bool:
        """Whether steps are graphs."""
        return self.backend in ("cuda", "host", "emulated")

    @property
    def compiles(self) -> bool:
        """Whether the step's pieces are compiled."""
        return self.backend in ("cuda", "host", "compile")

    def rows(self) -> list[tuple[str, str]]:
        """The plan as (name, value) pairs, in reading order."""
        config, spec = self.config, self.spec
        sizes = self.capture_sizes
        shown = ", ".join(map(str, sizes if len(sizes) <= 8 else (*sizes[:3], "…", *sizes[-2:])))
        graphs = f"{len(sizes)} batch sizes: {shown}" if self.captures else "none"
        if self.captures and self.prefill_capture_sizes:
            graphs += f"; prompts of up to {', '.join(map(str, self.prefill_capture_sizes))} tokens"
        layer, kinds = spec.layers[0].attention, len(set(spec.layers))
        return [
            ("model", f"{spec.architecture} from {self.folder}"),
            (
                "size",
                f"{len(spec.layers)} layers of {kinds} kind{'s' if kinds > 1 else ''}, hidden {spec.hidden_size:,}, "
                f"{layer.num_heads} heads of {layer.head_dim}, {layer.num_kv_heads} KV heads, "
                f"vocabulary {spec.vocab_size:,}",
            ),
            (
                "weights",
                f"{self.num_parameters:,} parameters, {format_bytes(self.weight_bytes)} in {_name(self.dtype)}",
            ),
            ("device", str(self.device) + (f", {self.num_threads} threads" if self.device.type == "cpu" else "")),
            ("execution", f"{config.execution} ({self.backend} backend)"),
            *([("compiled", self._compiled())] if self.compiles else []),
            ("attention", f"{self.attention.backend.value} ({self.attention.reason})"),
            ("graphs", graphs),
            ("max_model_len", f"{self.max_model_len:,} tokens"),
            ("max_num_seqs", f"{config.max_num_seqs:,} requests"),
            ("max_num_batched_tokens", f"{config.max_num_batched_tokens:,} tokens a step"),
            ("KV cache", self._cache()),
            ("prefix caching", "on" if config.enable_prefix_caching else "off"),
            *(("note", note) for note in self.notes),
        ]

    def _cache(self) -> str:
        """Its size; without one, what it will be made of."""
        each = f"{self.kv_bytes_per_token:,} bytes each"
        if not self.num_blocks:
            return f"the caller's: blocks of {self.block_size} tokens, {each}"
        blocks = self.num_blocks - 1
        tokens = f"{blocks:,} blocks of {self.block_size} = {blocks * self.block_size:,} tokens"
        return f"{format_bytes(self.kv_cache_bytes)}: {tokens}, {each}"

    def _compiled(self) -> str:
        """How many functions: each kind of layer for each class of shapes, passes of the sampler, heads and gathers."""
        kinds = len(set(self.spec.layers)) if self.model_impl == "ostinato" else 1
        rows = 2 if self.config.max_num_seqs > 1 else 1  # classes of shapes: one row, several; and tokens
        passes = 4 if self.attention.backend is AttentionBackend.TORCH else 1  # else only edits are not our kernels
        others = passes + (1 if self.device.type == "cpu" else 2 * rows)
        what = f"{kinds} kind{'s' if kinds > 1 else ''} of layers x {rows + 1} classes of shapes + {others}"
        return f"{kinds * (rows + 1) + others} functions, whatever the depth: {what}"

    def render(self) -> str:
        """The plan as aligned lines of text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    __str__ = render


def make_plan(config: EngineConfig) -> Plan:
    """Read the checkpoint's ``config.json`` and the machine's free memory, and settle every number.

    ``ModelLoadError`` for the checkpoint, ``ConfigError`` where options contradict it, each other or the machine.
    """
    plan = plan_without_cache(config)
    block_size, block_bytes = plan.block_size, plan.block_bytes
    num_blocks = _num_blocks(plan)
    max_model_len, notes = _fit_length(config, block_size, plan.max_model_len, plan.window, num_blocks, block_bytes)
    window = _window(plan.spec, max_model_len, block_size)
    if window is not None:
        notes = (f"KV blocks behind the last {window:,} tokens of a request are given back", *notes)
    notes = (*plan.notes, *notes)
    return replace(plan, num_blocks=num_blocks, max_model_len=max_model_len, window=window, notes=notes)


def plan_without_cache(config: EngineConfig) -> Plan:
    """All but the KV cache, which somebody else will make: ``num_blocks`` is 0. Raises as ``make_plan``."""
    folder = resolve_model(config.model, config.revision)
    raw = read_config(folder)
    described = describe(config.model_impl, folder, raw)
    spec = described.spec
    device = _device(config.device)
    dtype: torch.dtype = getattr(torch, spec.dtype if config.dtype == "auto" else config.dtype)
    weight_bytes = described.num_parameters * dtype.itemsize
    kv_bytes_per_token = spec.kv_elements_per_token * dtype.itemsize
    free = max(0, free_bytes(device) - weight_bytes)
    max_model_len = _asked_length(config, spec)
    largest_head = max(layer.attention.head_dim for layer in spec.layers)
    attention = choose_attention(config.attention_backend, device, dtype, largest_head)
    block_size = config.block_size or attention.block_size
    sizes = config.capture_sizes
    return Plan(
        config=config,
        folder=folder,
        model_impl=described.model_impl,
        spec=spec,
        device=device,
        dtype=dtype,
        num_threads=torch.get_num_threads(),
        attention=attention,
        block_size=block_size,
        max_model_len=max_model_len,
        window=_window(spec, max_model_len, block_size),
        num_blocks=0,
        capture_sizes=default_sizes(config.max_num_seqs) if sizes is None else check_sizes(sizes, config.max_num_seqs),
        prefill_capture_sizes=_prefill_sizes(config, device, attention),
        num_parameters=described.num_parameters,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
        free_bytes=free,
        notes=described.notes,
    )


def _asked_length(config: EngineConfig, spec: ModelSpec) -> int:
    longest = spec.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len = {config.max_model_len:,} is more than the checkpoint's "
            f"max_position_embeddings = {longest:,}"
        )
    return config.max_model_len or longest


def _window(spec: ModelSpec, max_model_len: int, block_size: int) -> int | None:
    """The widest layer's window, if any block is behind it by the time that the last token is computed."""
    windows = [layer.attention.window for layer in spec.layers]
    widest = max(window or max_model_len for window in windows)
    return widest if blocks_behind(max_model_len - 2, widest, block_size) else None


def _prefill_sizes(config: EngineConfig, device: torch.device, attention: Attention) -> tuple[int, ...]:
    """Token counts of captured steps with prompts; only kernels that ask the host nothing can be captured."""
    on_gpu, by_torch = device.type == "cuda", attention.backend is AttentionBackend.TORCH
    if config.prefill_capture_sizes is not None:
        if config.prefill_capture_sizes and on_gpu and by_torch:
            raise ConfigError(
                "prefill_capture_sizes: torch's attention to prompts asks the host for lengths, which no CUDA graph "
                f"can hold; use another attention_backend (it is torch because: {attention.reason})"
            )
        return tuple(sorted({max(2, size) for size in config.prefill_capture_sizes}))
    return tuple(size for size in PREFILL_SIZES if on_gpu and not by_torch and size <= config.max_num_batched_tokens)


def _num_blocks(plan: Plan) -> int:
    """Blocks with the null block: all that ``kv_cache_memory`` holds, or as many as all requests could ever use."""
    config, block_size, block_bytes, free = plan.config, plan.block_size, plan.block_bytes, plan.free_bytes
    wanted = config.max_num_seqs * blocks_for(plan.max_model_len, block_size)
    if plan.window is not None:
        in_flight = config.max_num_batched_tokens * (2 if plan.device.type == "cuda" else 1)
        at_once = most_blocks(config.max_num_seqs, in_flight, plan.window, block_size)
        wanted = min(wanted, at_once)
    if (size := config.kv_cache_memory) is not None:
        num_blocks = blocks_of(size, block_size, block_bytes)
        needed = size if isinstance(size, int) else num_blocks * block_bytes
        if needed > free:
            asked = f"{format_bytes(needed)} ({needed:,} bytes{'' if isinstance(size, int) else f', for {size}'})"
            raise ConfigError(
                f"kv_cache_memory = {asked} is more than the {format_bytes(free)} that are free beside the weights"
            )
        return num_blocks
    return min(wanted + 1, free // 4 // block_bytes)


def _fit_length(
    config: EngineConfig, block_size: int, max_model_len: int, window: int | None, num_blocks: int, block_bytes: int
) -> tuple[int, tuple[str, ...]]:
    """The length that one request can get from ``num_blocks``; the last token's KV is never stored."""

    def needed(length: int) -> int:
        return (blocks_to_progress(length - 1, window, block_size) + 1) * block_bytes

    if needed(max_model_len) <= num_blocks * block_bytes:
        return max_model_len, ()
    longest = (num_blocks - 1) * block_size + 1

    have = f"{format_bytes(num_blocks * block_bytes)} ({num_blocks} blocks of {format_bytes(block_bytes)})"
    if config.max_model_len is not None or longest < 2:
        given = "kv_cache_memory gives" if config.kv_cache_memory is not None else "a quarter of the free memory is"
        length = max_model_len if config.max_model_len is not None else 2
        raise ConfigError(
            f"KV cache: one request of {length:,} tokens needs {format_bytes(needed(length))} "
            f"({needed(length):,} bytes, null block included); {given} {have}"
        )
    note = f"max_model_len shrunk from {max_model_len:,} to {longest:,} tokens: the KV cache has {have}"
    return longest, (f"{note}, the whole length would need {format_bytes(needed(max_model_len))}",)


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} was asked for, but torch {torch.__version__} sees no CUDA device")
    device = torch.device("cuda" if name == "auto" else name)
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} was asked for; torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
