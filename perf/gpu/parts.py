"""The parts of the check, in their order: what is needed to believe the rest comes first, what takes long last.

Each is a module ``part_<name>`` with ``measure(context)``, which returns a ``Finding``. They share a process, with
its floors and engines, as long as all goes well; after a failure the next begins in a new one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """``seconds``: most it may take; ``least``: it is not begun with fewer left."""

    name: str
    what: str
    seconds: float
    least: float = 15.0
    module: str = ""

    @property
    def module_name(self) -> str:
        """Where its ``measure`` is."""
        return self.module or f"ostinato.perf.gpu.part_{self.name}"


PARTS = (
    Part("assumptions", "what the plan assumes of the machine: in-place writes, node order, launch times, floors", 75),
    Part("correctness", "fp32 tokens and bf16 error against transformers", 150, 40),
    Part("decode", "batch 1 beside transformers, a plain CUDA graph and the floor", 120, 30),
    Part("steps", "wall time of a step against its GPU time, and how even steps are", 60),
    Part("sampling", "top-k and top-p in the graph against greedy, batch 1", 60),
    Part("host", "the host's own work of a step", 30),
    Part("attention", "paged decode attention against the read bandwidth", 45),
    Part("ttft", "time to the first token of 128 and 1,024 tokens", 60),
    Part("batch", "16 to 256 requests at 2k context against the floor; every capture size", 120, 40),
    Part("sampling_256", "top-k and top-p in the graph against greedy, batch 256", 60, 20),
    Part("throughput", "nano-vllm's benchmark: 256 requests of 100 to 1,024 tokens in and out", 110, 40),
    Part("prefix", "a cached prefix of 16k tokens", 60, 20),
    Part("inspect", "the decode step as `ostinato graph` sees it: nodes explained, a capture, a page", 100, 35),
    Part("static_peer", "batch 1 beside transformers with a static cache and torch.compile", 100, 45),
    Part("startup", "warm-up of 12 batch sizes from an empty and from a full compile cache", 150, 60),
    Part("larger", "batch 1 at the sizes of Llama-3.2-1B and Qwen3-8B", 150, 50),
)
