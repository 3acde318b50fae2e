"""The plain decoder run in nano-vllm's manner: a CUDA graph of the layers per batch size, head and argmax outside.

A step: token ids and positions go from Python lists through pinned memory into the graph's inputs, the graph of the
least size that holds the rows is replayed, logits and argmax follow as ordinary launches, and the host waits for the
tokens before it prepares the next step. Without CUDA the layers are called instead of replayed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ostinato.perf.baselines.plain_qwen3 import PlainQwen3


class PlainGraphs:
    """Graphs of ``model`` for batches of up to ``max(sizes)`` sequences of up to ``cells`` tokens."""

    def __init__(self, model: PlainQwen3, sizes: Sequence[int], cells: int) -> None:
        self._model = model
        self._sizes = sorted(sizes)
        self._cells = cells
        self._cache = model.new_cache(self._sizes[-1], cells)
        self._ids, self._positions = (
            torch.zeros(self._sizes[-1], dtype=torch.int64, device=model.device) for _ in range(2)
        )
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._hidden: dict[int, Tensor] = {}
        if model.device.type == "cuda":
            self._capture()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """``max_tokens`` greedy tokens for each prompt."""
        return self._run(prompts, max_tokens)[0]

    @torch.inference_mode()
    def seconds_per_step(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
        """Time of a decode step: from the arrival of the first tokens to that of the last, by the steps between."""
        arrivals = self._run(prompts, max_tokens)[1]
        return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)

    def _run(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> tuple[list[list[int]], list[float]]:
        """Tokens of each prompt, and when each step's tokens had arrived."""
        longest = max(map(len, prompts)) + max_tokens
        if longest > self._cells or len(prompts) > self._sizes[-1]:
            raise ValueError(
                f"{len(prompts)} prompts, {longest:,} tokens with their output; the cache holds {self._sizes[-1]} of "
                f"{self._cells:,} tokens"
            )
        last = [self._prefill(prompt, row) for row, prompt in enumerate(prompts)]
        tokens, arrivals = [[token] for token in last], [time.perf_counter()]
        for step in range(max_tokens - 1):
            last = self._step(last, [len(prompt) + step for prompt in prompts])
            for kept, token in zip(tokens, last, strict=True):
                kept.append(token)
            arrivals.append(time.perf_counter())
        return tokens, arrivals

    def _prefill(self, prompt: Sequence[int], row: int) -> int:
        ids = torch.tensor(prompt, device=self._model.device)
        return int(self._model.greedy(self._model.prefill(ids, self._cache, row)))

    def _step(self, ids: Sequence[int], positions: Sequence[int]) -> list[int]:
        """One token more for each row."""
        rows = len(ids)
        self._ids[:rows].copy_(self._on_device(ids))
        self._positions[:rows].copy_(self._on_device(positions))
        if self._graphs:
            size = next(size for size in self._sizes if size >= rows)
            self._graphs[size].replay()
            hidden = self._hidden[size][:rows]
        else:
            hidden = self._model.decode(self._ids[:rows], self._positions[:rows], self._cache)
        tokens: list[int] = self._model.greedy(hidden).tolist()
        return tokens

    def _on_device(self, values: Sequence[int]) -> Tensor:
        pinned = torch.tensor(values, dtype=torch.int64, pin_memory=self._model.device.type == "cuda")
        return pinned.to(self._model.device, non_blocking=True)

    @torch.inference_mode()
    def _capture(self) -> None:
        """Largest first, in one pool, each size warmed up on the stream that captures it."""
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        for size in reversed(self._sizes):
            inputs = self._ids[:size], self._positions[:size], self._cache
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._model.decode(*inputs)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self._hidden[size] = self._model.decode(*inputs)
            self._graphs[size] = graph
