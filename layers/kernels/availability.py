"""Whether our Triton kernels can run on a device, and if not, why not. Launches nothing and compiles nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

LEAST_CAPABILITY = (8, 0)
"""Ampere: the first with bf16 matrix products and asynchronous copies."""


def interpreted() -> bool:
    """Whether the environment asks for Triton's interpreter, which is read when a kernel's module is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def triton_problem(device: torch.device) -> str | None:
    """Return in one line why the kernels cannot run on ``device``; None if they can."""
    if not sys.platform.startswith("linux"):
        return f"Triton runs on Linux; this is {sys.platform}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if device.type == "cpu":
        return (
            None if interpreted() else "Triton kernels run on a CPU only in Triton's interpreter (TRITON_INTERPRET=1)"
        )
    if device.type != "cuda":
        return f"there are no Triton kernels for devices of type {device.type}"
    if interpreted():
        return "TRITON_INTERPRET is set: Triton's interpreter would copy every cache to the CPU and back; unset it"
    return _torch_problem(device) or _capability_problem(device) or _compiler_problem()


def _torch_problem(device: torch.device) -> str | None:
    """What stands between torch and the GPU: its build, the driver, the number of devices."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
    except (RuntimeError, AssertionError) as error:  # torch says so of an old driver, with its version, or of none
        lines = str(error).strip().splitlines()
        return f"torch {torch.__version__} cannot use CUDA: {lines[0] if lines else type(error).__name__}"
    if (device.index or 0) >= count:
        return f"{device} does not exist: torch sees {count} CUDA device{'' if count == 1 else 's'}"
    return None


def _capability_problem(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability >= LEAST_CAPABILITY:
        return None
    name = torch.cuda.get_device_name(device)
    return "{} has compute capability {}.{}; the kernels need {}.{} or newer".format(
        name, *capability, *LEAST_CAPABILITY
    )


def _compiler_problem() -> str | None:
    """Triton compiles its launcher with the host's C compiler, once per machine; kernels themselves need none."""
    if not any(map(shutil.which, (os.environ.get("CC", "gcc").split()[0], "clang"))):
        return "Triton needs a C compiler for its launcher: neither CC, gcc nor clang was found"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"Triton needs Python's headers for its launcher: {header} does not exist"
    return None
