"""ostinato: transformer inference inside your own process, captured as graphs and replayed over a paged KV cache.

Importing any ``ostinato.…`` module runs this file, so it holds nothing but lazy names (PEP 562): a name is imported
when it is first read, and ``import ostinato`` alone imports neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ostinato import errors
    from ostinato.async_handle import AsyncRequestHandle
    from ostinato.async_llm import AsyncLLM
    from ostinato.config import EngineConfig
    from ostinato.errors import (
        CaptureError,
        ConfigError,
        EngineAsleep,
        EngineDead,
        ModelLoadError,
        NonFiniteLogits,
        OstinatoError,
        OutOfBlocks,
        ParamError,
        PromptTooLong,
        QueueFull,
    )
    from ostinato.handle import RequestHandle
    from ostinato.llm import LLM
    from ostinato.model_runner import ModelRunner
    from ostinato.outputs import CompletionOutput, Logprob, RequestOutput, StreamDelta
    from ostinato.sampling_params import SamplingParams
    from ostinato.structured_outputs import StructuredOutputsParams
    from ostinato.user_processors import ProcessorRow

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncRequestHandle",
    "CaptureError",
    "CompletionOutput",
    "ConfigError",
    "EngineAsleep",
    "EngineConfig",
    "EngineDead",
    "Logprob",
    "ModelLoadError",
    "ModelRunner",
    "NonFiniteLogits",
    "OstinatoError",
    "OutOfBlocks",
    "ParamError",
    "ProcessorRow",
    "PromptTooLong",
    "QueueFull",
    "RequestHandle",
    "RequestOutput",
    "SamplingParams",
    "StreamDelta",
    "StructuredOutputsParams",
    "__version__",
    "errors",
]

_NAMES = {
    "ostinato.async_handle": ("AsyncRequestHandle",),
    "ostinato.async_llm": ("AsyncLLM",),
    "ostinato.config": ("EngineConfig",),
    "ostinato.errors": (
        "CaptureError",
        "ConfigError",
        "EngineAsleep",
        "EngineDead",
        "ModelLoadError",
        "NonFiniteLogits",
        "OstinatoError",
        "OutOfBlocks",
        "ParamError",
        "PromptTooLong",
        "QueueFull",
    ),
    "ostinato.handle": ("RequestHandle",),
    "ostinato.llm": ("LLM",),
    "ostinato.model_runner": ("ModelRunner",),
    "ostinato.outputs": ("CompletionOutput", "Logprob", "RequestOutput", "StreamDelta"),
    "ostinato.sampling_params": ("SamplingParams",),
    "ostinato.structured_outputs": ("StructuredOutputsParams",),
    "ostinato.user_processors": ("ProcessorRow",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # a type checker that saw __getattr__ would let every misspelt name pass

    def __getattr__(name: str) -> object:
        """Import the module that holds ``name``; the next read finds the name here."""
        import importlib

        if name == "errors":
            return importlib.import_module("ostinato.errors")
        if name not in _HOME:
            raise AttributeError(f"module 'ostinato' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Every public name, imported or not."""
    return sorted(globals().keys() | set(__all__))
