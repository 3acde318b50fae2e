"""What the caller asked for: every engine option, checked on its own. What follows from it is ``plan.make_plan``.

Knows no checkpoint and no torch. A plan that can be printed before anything is allocated comes from ``resolve()``.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.cache_size import CacheSize, parse_amount
from ostinato.layers.errors import ConfigError
from ostinato.param_checks import nearest, show

if TYPE_CHECKING:
    from ostinato.plan import Plan

EXECUTIONS = ("graph", "compile", "eager", "emulate")
DTYPES = ("auto", "bfloat16", "float16", "float32")
MODEL_IMPLS = ("auto", "ostinato", "transformers")
ATTENTION_BACKENDS = ("auto", "triton", "flash", "torch")
_UNITS = {"": 1, "b": 1} | {f"{p}{i}b": (1024 if i else 1000) ** n for n, p in enumerate("kmgt", 1) for i in ("i", "")}


@dataclass(frozen=True, init=False)
class EngineConfig:
    """Options of one engine; keyword arguments only, unknown names are refused with the nearest known one.

    model: a folder, a hub id (``ORG/NAME``), or ``"demo"``; revision: a branch, tag or commit of a hub id.
    device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    dtype: ``"auto"`` (the checkpoint's own), ``"bfloat16"``, ``"float16"``, ``"float32"``, or a ``torch.dtype``.
    max_num_seqs: requests that run at once. max_waiting: requests beyond them that may wait, ``QueueFull`` is raised
    for more; None is no limit. max_num_batched_tokens: tokens of one step, prompts' and decodes' together.
    max_model_len: tokens of one request, prompt and output; None takes the checkpoint's, as far as memory goes.
    block_size: tokens of one KV block; ``"auto"`` takes what the attention backend likes best.
    kv_cache_memory: bytes (an int, or ``"2GiB"``), ``"65536 tokens"`` or ``"4096 blocks"``; None is the smaller of what
    ``max_num_seqs`` requests of ``max_model_len`` tokens need and a quarter of the free memory.
    enable_prefix_caching: requests share the KV blocks of equal prompt beginnings.
    execution: ``"graph"`` (compiled, captured, replayed), ``"compile"``, ``"eager"``, or ``"emulate"`` (eager, through
    emulated graphs). capture_sizes: batch sizes that get a graph; None takes 1 to 16, then steps of 8.
    prefill_capture_sizes: token counts that get a graph for steps with prompts, padded to them: the first token of a
    short prompt comes sooner; None takes 16 to 256 on a GPU, but for the torch backend, and none elsewhere.
    attention_backend: ``"triton"`` (our kernels), ``"flash"`` (flash-attn), ``"torch"``, or ``"auto"``: on a GPU the
    first usable of flash, triton, torch; on a CPU torch. What cannot be used is named, and the next one taken.
    debug: raise where a promise breaks after warm-up (something compiled, captured, or moved), not only count it.
    seed: of the requests that bring none. model_impl: whose code the model is: ``"ostinato"``'s, ``"transformers"``'
    own over our KV cache, or ``"auto"``: the first that knows the architecture.
    """

    model: str | Path
    revision: str | None
    device: str
    dtype: str
    max_num_seqs: int
    max_waiting: int | None
    max_model_len: int | None
    max_num_batched_tokens: int
    block_size: int | None
    kv_cache_memory: CacheSize | None
    enable_prefix_caching: bool
    execution: str
    capture_sizes: tuple[int, ...] | None
    prefill_capture_sizes: tuple[int, ...] | None
    attention_backend: str
    debug: bool
    seed: int
    model_impl: str

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: Any = "auto",
        max_num_seqs: int = 16,
        max_waiting: int | None = None,
        max_model_len: int | None = None,
        max_num_batched_tokens: int = 2048,
        block_size: int | str = "auto",
        kv_cache_memory: int | str | None = None,
        enable_prefix_caching: bool = True,
        execution: str = "graph",
        capture_sizes: Sequence[int] | None = None,
        prefill_capture_sizes: Sequence[int] | None = None,
        attention_backend: str = "auto",
        debug: bool = False,
        seed: int = 0,
        model_impl: str = "auto",
        **unknown: object,
    ) -> None:
        for name in unknown:
            raise ConfigError(f"unknown option {name!r}{nearest(name, [field.name for field in fields(self)])}")
        values: dict[str, object] = {
            "model": _model(model),
            "revision": _text_or_none("revision", revision),
            "device": _device(device),
            "dtype": _choice("dtype", str(dtype).removeprefix("torch."), DTYPES),
            "max_num_seqs": _integer("max_num_seqs", max_num_seqs, 1, 4096),
            "max_waiting": _integer_or_none("max_waiting", max_waiting, 0, 1 << 30),
            "max_model_len": _integer_or_none("max_model_len", max_model_len, 2, 1 << 30),
            "max_num_batched_tokens": _integer("max_num_batched_tokens", max_num_batched_tokens, 1, 1 << 24),
            "block_size": None if block_size == "auto" else _integer("block_size", block_size, 1, 4096),
            "kv_cache_memory": None if kv_cache_memory is None else cache_size("kv_cache_memory", kv_cache_memory),
            "enable_prefix_caching": _flag("enable_prefix_caching", enable_prefix_caching),
            "execution": _choice("execution", execution, EXECUTIONS),
            "capture_sizes": _sizes("capture_sizes", capture_sizes, "max_num_seqs", max_num_seqs),
            "prefill_capture_sizes": _sizes(
                "prefill_capture_sizes", prefill_capture_sizes, "max_num_batched_tokens", max_num_batched_tokens
            ),
            "attention_backend": _choice("attention_backend", attention_backend, ATTENTION_BACKENDS),
            "debug": _flag("debug", debug),
            "seed": _integer("seed", seed, -(1 << 63), (1 << 64) - 1),
            "model_impl": _choice("model_impl", model_impl, MODEL_IMPLS),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens = {self.max_num_batched_tokens:,} is less than max_num_seqs = "
                f"{self.max_num_seqs:,}: a step must hold one token of every running request"
            )

    def resolve(self) -> Plan:
        """What this means for the checkpoint and the machine, nothing allocated: see ``ostinato.plan``."""
        from ostinato.plan import make_plan

        return make_plan(self)


def _model(value: object) -> str | Path:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, os.PathLike):
        return Path(value)
    raise ConfigError(f"model: expected a folder, a hub id or 'demo', got {value!r}")


def _text_or_none(name: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigError(f"{name}: expected text, got {value!r}")


def _device(value: object) -> str:
    text = str(value)
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        return text
    raise ConfigError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {value!r}")


def _choice(name: str, value: object, choices: Sequence[str]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise ConfigError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name}: expected True or False, got {value!r}")


def _integer(name: str, value: Any, low: int, high: int) -> int:
    number = None
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            number = operator.index(value)
    if number is None or not low <= number <= high:
        raise ConfigError(f"{name}: expected an integer from {low:,} to {high:,}, got {show(value)}")
    return number


def _integer_or_none(name: str, value: object, low: int, high: int) -> int | None:
    return None if value is None else _integer(name, value, low, high)


def cache_size(name: str, value: object) -> CacheSize:
    """Bytes from an integer or a number with a unit ("2GiB", "500 MB"), or an amount: "4096 tokens", "256 blocks"."""
    number: Any = value
    if isinstance(value, str):
        if (amount := parse_amount(name, value)) is not None:
            return amount
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        unit = None if match is None else _UNITS.get(match[2].lower())
        if match is None or unit is None:
            wanted = "bytes, as an integer or like '2GiB' or '500MB', or '4096 tokens', or '256 blocks'"
            raise ConfigError(f"{name}: expected {wanted}, got {value!r}")
        number = min(1 << 61, int(min(float(match[1]) * unit, 1e30)))
    return _integer(name, number, 1, 1 << 60)


def _sizes(name: str, value: Sequence[int] | None, of_most: str, most: object) -> tuple[int, ...] | None:
    """Sizes up to ``most``, which is the option ``of_most``."""
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise ConfigError(f"{name}: expected sizes, as in [1, 2, 4, 8], got {value!r}")
    if len(value) == 0 and name == "capture_sizes":
        raise ConfigError(f"{name}: expected sizes, as in [1, 2, 4, 8], got {value!r}")
    top = _integer(of_most, most, 1, 1 << 24)
    return tuple(_integer(name, size, 1, top) for size in value)
