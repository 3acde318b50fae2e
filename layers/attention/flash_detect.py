"""Which implementation of flash-attn is installed and works on a device, and why the others do not.

Nothing is imported before it is asked for. A package that is absent, built for another torch, too old, or unable to run
on the device gives a line that says so, and the next is tried.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from types import ModuleType

import torch

from ostinato.layers.attention.flash import FlashBuild, FlashKind, no_pages, prompts
from ostinato.layers.attention.scoring import Scoring

_SCORED = ("softmax_scale", "causal", "window_size", "softcap")
_SPANS = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
PROBE_HEAD_DIM = 128


@dataclass(frozen=True)
class Package:
    """Where an interface is published, and which parameters of it we use."""

    kind: FlashKind
    distribution: str
    """Its name for ``importlib.metadata``."""
    modules: tuple[str, ...]
    """Tried in order."""
    capabilities: Callable[[int], bool]
    """Of the device's major compute capability."""
    devices: str
    """``capabilities`` in words."""
    varlen: tuple[str, tuple[str, ...]]
    """A function's name, and the parameters that we need of it."""
    with_kvcache: tuple[str, tuple[str, ...]] | None = None


PACKAGES = (
    Package(
        FlashKind.FLASH3,
        "flash_attn_3",
        ("flash_attn_interface", "flash_attn_3.flash_attn_interface"),
        lambda major: major == 9,
        "Hopper (9.x)",
        ("flash_attn_varlen_func", (*_SPANS, *_SCORED)),
        (
            "flash_attn_with_kvcache",
            ("cache_seqlens", "page_table", "cu_seqlens_q", "max_seqlen_q", "num_splits", *_SCORED),
        ),
    ),
    Package(
        FlashKind.FLASH2,
        "flash_attn",
        ("flash_attn",),
        lambda major: major >= 8,
        "8.0 and later",
        ("flash_attn_varlen_func", (*_SPANS, *_SCORED, "alibi_slopes", "block_table")),
        ("flash_attn_with_kvcache", ("cache_seqlens", "block_table", "num_splits", *_SCORED, "alibi_slopes")),
    ),
    Package(
        FlashKind.FLASH4,
        "flash-attn-4",
        ("flash_attn.cute",),
        lambda major: major in (9, 10, 11),
        "Hopper and Blackwell (9.x to 11.x)",
        ("flash_attn_varlen_func", (*_SPANS, *_SCORED)),
    ),
    Package(
        FlashKind.TORCH,
        "torch",
        ("torch.nn.attention.varlen",),
        lambda major: major >= 8,
        "8.0 and later",
        ("varlen_attn", ("cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size")),
    ),
)
"""In the order of preference: those that attend over pages first, what compiles while it serves after them."""


def detect(device: torch.device) -> FlashBuild | str:
    """The first of ``PACKAGES`` that works on ``device``, or why none does: found out once a device.

    Call it before anything is captured: each candidate is imported and attends over one token, which must yield its
    value.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _detect(device)


@cache
def _detect(device: torch.device) -> FlashBuild | str:
    found = capability_of(device)
    if found is None:
        return f"flash-attn needs a CUDA device, not {device.type}"
    capability, multiprocessors = found
    reasons: list[str] = []
    for package in PACKAGES:
        build = _load(package, capability)
        if isinstance(build, FlashBuild):
            build = replace(build, multiprocessors=multiprocessors, passed_over=tuple(reasons))
            reason = _fault(build, device)
            if reason is None:
                return build
            build = reason
        reasons.append(build)
    return "; ".join(reasons)


def capability_of(device: torch.device) -> tuple[tuple[int, int], int] | None:
    """Compute capability and number of multiprocessors; None where there is no CUDA."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def _load(package: Package, capability: tuple[int, int]) -> FlashBuild | str:
    """``package`` imported and checked against what we need of it, or a line that says what is wrong."""
    name = package.kind.value
    module = _import_first(package)
    if isinstance(module, str):
        return f"{name} {module}"
    version = _version(package, module)
    if not package.capabilities(capability[0]):
        return f"{name} {version} runs on {package.devices}, this device is {capability[0]}.{capability[1]}"
    for function, needed in filter(None, (package.varlen, package.with_kvcache)):
        missing = _missing(module, function, needed)
        if missing:
            return f"{name} {version} is too old or too new: {missing}"
    varlen = getattr(module, package.varlen[0])
    with_kvcache = getattr(module, package.with_kvcache[0]) if package.with_kvcache else no_pages
    takes = frozenset(inspect.signature(varlen).parameters)
    return FlashBuild(package.kind, version, varlen, with_kvcache, takes, capability)


def _import_first(package: Package) -> ModuleType | str:
    """The package's module, or why there is none."""
    for name in package.modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # something that it needs is missing
                return _broken(package, error)
        except Exception as error:  # of a foreign binary anything may come: a symbol, a library, a registration twice
            return _broken(package, error)
        else:
            if module.__file__ is not None:  # else a folder of that name, which holds other packages
                return module
    return "is not installed"


def _broken(package: Package, error: Exception) -> str:
    try:
        version = metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        version = "(version unknown)"
    line = " ".join(str(error).split())
    return f"{version} cannot be imported with torch {torch.__version__}: {type(error).__name__}: {line[:300]}"


def _version(package: Package, module: ModuleType) -> str:
    try:
        return metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        return str(getattr(module, "__version__", "(version unknown)"))


def _missing(module: ModuleType, function: str, needed: Iterable[str]) -> str | None:
    """What ``module.function`` lacks, in words."""
    found = getattr(module, function, None)
    if found is None:
        return f"there is no {function}"
    takes = inspect.signature(found).parameters
    absent = [name for name in needed if name not in takes]
    return f"{function} takes no {', '.join(absent)}" if absent else None


def _fault(build: FlashBuild, device: torch.device) -> str | None:
    """What goes wrong when ``build`` attends over one token on ``device``; None where its value comes back."""
    token = torch.ones(1, 1, PROBE_HEAD_DIM, dtype=torch.float16, device=device)
    spans = torch.tensor([0, 1], dtype=torch.int32, device=device)
    try:
        with torch.inference_mode():
            found = prompts(build, token, token, token, spans, 1, Scoring(1.0))
        same = torch.equal(found, token)
    except Exception as error:  # no kernel image for the device, a compiler that is not there: the next may work
        return f"{build.name} does not run on this device: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None if same else f"{build.name} computes wrong values on this device"
