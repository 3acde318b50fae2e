"""What a checkpoint is: specs, families, the decoder and its weights. Knows no engine.

``ostinato.models.load(path)`` gives a model without one; ``ostinato.models.Qwen3(hidden_size=…, …)`` makes one with
random weights; ``ostinato.models.register_model(family)`` adds a family. Names are loaded when they are asked for.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "Model": "standalone",
    "load": "standalone",
    "register_model": "registry",
    "Family": "families.family",
    "Rule": "weights.rules",
    "OneOf": "weights.rules",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name.startswith("_") or not name[:1].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.standalone").constructor(name)
