"""Whether the kernels can run somewhere, and the reason where they cannot."""

from __future__ import annotations

import importlib.util
import shutil
import sys

import pytest
import torch

from ostinato.layers.kernels.availability import triton_problem

pytestmark = pytest.mark.kernels
GPU = torch.device("cuda")


@pytest.fixture
def working_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An A100 as torch would describe it; the tests take one thing away."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    return monkeypatch


@pytest.mark.usefixtures("working_gpu")
def test_nothing_is_wrong_with_a_working_gpu() -> None:
    assert triton_problem(GPU) is None
    assert triton_problem(torch.device("cuda:0")) is None


@pytest.mark.usefixtures("working_gpu")
def test_a_device_that_is_not_there_is_named() -> None:
    assert triton_problem(torch.device("cuda:3")) == "cuda:3 does not exist: torch sees 1 CUDA device"
    assert triton_problem(torch.device("mps")) == "there are no Triton kernels for devices of type mps"


def test_a_gpu_older_than_ampere_is_refused_with_both_numbers(working_gpu: pytest.MonkeyPatch) -> None:
    working_gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton_problem(GPU) == "Some GPU has compute capability 7.5; the kernels need 8.0 or newer"


def test_an_old_driver_is_reported_in_torchs_words(working_gpu: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update …")

    working_gpu.setattr(torch.cuda, "init", init)
    problem = triton_problem(GPU)
    assert problem is not None
    assert "\n" not in problem
    assert problem.endswith("cannot use CUDA: The NVIDIA driver on your system is too old (found version 11040).")


def test_a_torch_without_cuda_is_named(working_gpu: pytest.MonkeyPatch) -> None:
    working_gpu.setattr(torch.version, "cuda", None)
    assert triton_problem(GPU) == f"torch {torch.__version__} was built without CUDA"


def test_triton_runs_on_linux_only(working_gpu: pytest.MonkeyPatch) -> None:
    working_gpu.setattr(sys, "platform", "win32")
    assert triton_problem(GPU) == "Triton runs on Linux; this is win32"


def test_a_missing_triton_is_reported(working_gpu: pytest.MonkeyPatch) -> None:
    working_gpu.setattr(importlib.util, "find_spec", lambda name: None)
    assert str(triton_problem(GPU)).startswith("triton is not installed")


def test_tritons_launcher_needs_a_compiler_and_pythons_headers(working_gpu: pytest.MonkeyPatch) -> None:
    working_gpu.setattr("pathlib.Path.exists", lambda path: False)
    assert "Python.h does not exist" in str(triton_problem(GPU))
    working_gpu.setattr(shutil, "which", lambda name: None)
    assert "C compiler" in str(triton_problem(GPU))


def test_a_cpu_needs_the_interpreter_and_a_gpu_must_not_have_it(working_gpu: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert "TRITON_INTERPRET=1" in str(triton_problem(cpu))
    working_gpu.setenv("TRITON_INTERPRET", "1")
    assert triton_problem(cpu) is None
    assert "unset it" in str(triton_problem(GPU))
