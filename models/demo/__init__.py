"""The model that ships with the project: a small Qwen3-architecture language model of Python source code.

This package knows where the checkpoint is (the folder of this file) and how it was made (`ostinato.models.demo.train`).
It does not know how to run it: that is the engine's work, as for any other checkpoint. Importing it imports no torch.
"""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The folder of the shipped checkpoint: config.json, model.safetensors, tokenizer.json and their like."""
    return Path(__file__).resolve().parent
