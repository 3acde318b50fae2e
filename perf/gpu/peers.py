"""transformers on the device of the run: its own greedy ``generate``, and its logits of given tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class TransformersOnDevice:
    """A model with sdpa attention, in the checkpoint's type or ``dtype``.

    ``cache="static"`` makes ``generate`` compile the decode step (torch.compile with CUDA graphs); None is its default,
    uncompiled with a dynamic cache.
    """

    def __init__(self, folder: Path, device: str, dtype: str = "auto", cache: str | None = None) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._options = {} if cache is None else {"cache_implementation": cache}
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        self._model = model.to(device).eval()

    def generate(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """The generated token ids."""
        return self._generate(prompt, max_tokens, None)

    def seconds_per_token(self, prompt: Sequence[int], max_tokens: int) -> float:
        """Time from the arrival of the first token to that of the last, by the tokens in between."""
        arrivals = Arrivals()
        self._generate(prompt, max_tokens, arrivals)
        _, *times = arrivals.times  # a streamer gets the prompt first
        return (times[-1] - times[0]) / (len(times) - 1)

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Of every position: ``[len(tokens), vocab_size] float32``, on the device."""
        ids = torch.tensor([tokens], device=self._model.device)
        logits: Tensor = self._model(ids).logits[0].float()
        return logits

    def _generate(self, prompt: Sequence[int], max_tokens: int, streamer: Arrivals | None) -> list[int]:
        ids = torch.tensor([prompt], device=self._model.device)
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            streamer=streamer,
            **self._options,
        )
        generated: list[int] = output[0, len(prompt) :].tolist()
        return generated


class Arrivals:
    """A streamer that notes when each token arrives on the host."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        """Called with the prompt, then with each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called after the last."""
