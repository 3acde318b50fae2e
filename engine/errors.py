"""The error tree of ``ostinato.layers.errors`` under its public name."""

from ostinato.layers.errors import (
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

__all__ = [
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
]
