"""The peer: transformers' own ``generate`` on the same checkpoint, as it comes (uncompiled, dynamic cache), greedy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class TransformersPeer:
    """A transformers model; sdpa attention unless a call asks for ``"eager"``."""

    def __init__(self, folder: Path) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", attn_implementation="sdpa", local_files_only=True
        ).eval()

    def generate(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """The generated token ids."""
        return self._generate(prompt, max_tokens, None)

    def seconds_to_first_token(self, prompt: Sequence[int]) -> float:
        """Time of ``generate(max_new_tokens=1)``."""
        began = time.perf_counter()
        self._generate(prompt, 1, None)
        return time.perf_counter() - began

    def seconds_per_token(self, prompt: Sequence[int], max_tokens: int, attention: str = "sdpa") -> float:
        """Time from the arrival of the first token to that of the last, by the tokens in between."""
        if self._model.config._attn_implementation != attention:
            self._model.set_attn_implementation(attention)
        clock = _Clock()
        self._generate(prompt, max_tokens, clock)
        _, *arrivals = clock.times  # a streamer gets the prompt first
        return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)

    def _generate(self, prompt: Sequence[int], max_tokens: int, streamer: _Clock | None) -> list[int]:
        ids = torch.tensor([prompt])
        output = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, streamer=streamer
        )
        generated: list[int] = output[0, len(prompt) :].tolist()
        return generated


class _Clock:
    """A streamer that notes when each token arrives."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass
