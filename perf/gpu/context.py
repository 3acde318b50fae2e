"""What the parts of one worker share: the checkpoint, the measured floors, one open engine at a time, and prompts.

Nothing is made before a part asks for it, and nothing here imports torch by itself.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ostinato import LLM
    from ostinato.perf.checkpoints import Size
    from ostinato.perf.gpu.floors import Floors

PROMPT_TOKENS = 128

# Options of the three engines; those that an engine does not have are left out (see engine.open_engine).
LATENCY: dict[str, Any] = {
    "max_num_seqs": 4,
    "max_model_len": 4096,
    "capture_sizes": (1, 2, 4),
    "prefill_capture_sizes": (128, 1024),
}
WIDE: dict[str, Any] = {
    "max_num_seqs": 256,
    "max_model_len": 2560,
    "max_num_batched_tokens": 8192,
    "capture_sizes": (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256),
}
LONG: dict[str, Any] = {
    "max_num_seqs": 2,
    "max_model_len": 20_480,
    "max_num_batched_tokens": 8192,
    "capture_sizes": (1, 2),
}


class Context:
    """``size``: of the model; ``rounds``: how often each contender is measured; ``execution``: of the engines.

    ``out``: a folder for what parts write besides their figures.
    """

    def __init__(
        self,
        size: str = "qwen3-0.6b",
        rounds: int = 6,
        device: str = "cuda",
        execution: str = "graph",
        out: str = "perf/results",
    ) -> None:
        self.rounds = rounds
        self.out = Path(out)
        self.device = device
        self.deadline = float("inf")  # of the part that runs, by time.monotonic()
        self._size_name = size
        self._execution = execution
        self._random = random.Random(0)
        self._open: tuple[Mapping[str, Any], LLM] | None = None

    @cached_property
    def size(self) -> Size:
        """Sizes of the model."""
        from ostinato.perf.gpu.weights import GPU_SIZES

        return GPU_SIZES[self._size_name]

    @cached_property
    def folder(self) -> Path:
        """Its checkpoint, kept from run to run."""
        from ostinato.perf.checkpoints import cache_root
        from ostinato.perf.gpu.weights import prepare_on

        self.progress(f"the checkpoint of {self.size.name}: {self.size.weight_bytes / 1e9:.2f} GB of random weights")
        return prepare_on(self.device, self.size, cache_root())

    @cached_property
    def floors(self) -> Floors:
        """The machine's rates, measured once a worker."""
        from ostinato.perf.gpu.floors import measure_floors

        return measure_floors()

    @property
    def seconds_left(self) -> float:
        """Until the part that runs is ended from outside."""
        return self.deadline - time.monotonic()

    def engine(self, options: Mapping[str, Any], folder: Path | None = None, **others: Any) -> LLM:
        """The engine with these options: the open one, or a new one in its place."""
        from ostinato.perf.gpu.engine import open_engine

        wanted = {
            "device": self.device,
            "execution": self._execution,
            "kv_cache_memory": self.kv_bytes(options),
            **options,
            **others,
            "folder": folder or self.folder,
        }
        if self._open is None or self._open[0] != wanted:
            self.close_engine()
            self.progress(f"an engine for {options['max_num_seqs']} requests of {options['max_model_len']:,} tokens")
            llm = open_engine(wanted["folder"], {key: value for key, value in wanted.items() if key != "folder"})
            self._open = wanted, llm
        return self._open[1]

    def close_engine(self) -> None:
        """Give back what the open engine holds."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
        free_unused()

    def kv_bytes(self, options: Mapping[str, Any]) -> int:
        """Memory for all requests of an engine at full length, or six tenths of the card if that is less."""
        tokens = options["max_num_seqs"] * (options["max_model_len"] + 256) + 1024
        wanted: int = tokens * self.size.kv_bytes_per_token
        if self.device != "cuda":
            return wanted
        import torch

        return min(wanted, int(0.6 * torch.cuda.mem_get_info()[1]))

    def prompt(self, num_tokens: int = PROMPT_TOKENS) -> list[int]:
        """Tokens that no prompt before began with: no prefix is found for them."""
        return self._random.choices(range(self.size.vocab_size), k=num_tokens)

    def progress(self, doing: str) -> None:
        """Say on standard error what is going on."""
        print(f"    {doing}", file=sys.stderr, flush=True)

    def begin(self, seconds: float) -> None:
        """A part begins that has ``seconds``."""
        self.deadline = time.monotonic() + seconds
        free_unused()

    def settle(self) -> None:
        """Wait for the device, so that an error that it has not told yet belongs to the part that made it."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()


def free_unused() -> None:
    """Give back what nobody holds any more, torch's own reserve included."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
