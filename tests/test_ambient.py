"""``neutral_state``: the same inside whatever the caller has switched on, and the caller's own again outside."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from ostinato.graphs.ambient import neutral_state

State = dict[str, Any]


def state() -> State:
    """What the caller can have switched on, and what it does to new tensors."""
    product = torch.ones(2, 2, device="cpu") @ torch.ones(2, 2, device="cpu")
    return {
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "dtype of a product": product.dtype,
        "inference tensors": product.is_inference(),
        "device of a new tensor": torch.empty(1).device,
        "dtype of a new tensor": torch.empty(1).dtype,
    }


CPU = torch.device("cpu")
NEUTRAL: State = {
    "inference": False,
    "gradients": False,
    "autocast": False,
    "default dtype": torch.float32,
    "default device": CPU,
    "dtype of a product": torch.float32,
    "inference tensors": False,
    "device of a new tensor": CPU,
    "dtype of a new tensor": torch.float32,
}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def everything() -> Iterator[None]:
    with (
        default_dtype(torch.float64),
        default_device("meta"),
        torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode(),
        torch.device("meta"),
    ):
        yield


CALLERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients_within_inference": lambda: torch.set_grad_enabled(True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "default_device": lambda: default_device("meta"),
    "device_context": lambda: torch.device("meta"),
    "everything": everything,
}


@pytest.mark.parametrize("caller", CALLERS)
def test_inside_it_is_neutral_and_outside_the_callers(caller: str) -> None:
    with CALLERS[caller]():
        before = state()
        with neutral_state("cpu"):
            assert state() == NEUTRAL
        assert state() == before


@pytest.mark.parametrize("caller", CALLERS)
def test_an_error_inside_leaves_the_callers_state(caller: str) -> None:
    with CALLERS[caller]():
        before = state()
        with pytest.raises(ZeroDivisionError), neutral_state("cpu"):
            _ = 1 // 0
        assert state() == before


def test_a_cuda_device_type_is_neutral_on_the_cpu_too() -> None:
    with torch.autocast("cpu", torch.bfloat16), neutral_state("cuda"):
        assert state() == NEUTRAL


def test_nested_states_unwind_one_by_one() -> None:
    with everything():
        outer = state()
        with neutral_state("cpu"):
            with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
                inner = state()
                with neutral_state("cpu"):
                    assert state() == NEUTRAL
                assert state() == inner
            assert state() == NEUTRAL
        assert state() == outer


class Counting(TorchFunctionMode):
    """A caller's own mode: it counts the torch functions it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_a_callers_function_modes_see_nothing_and_come_back_in_order() -> None:
    with Counting() as outer, torch.device("meta"), Counting() as inner:
        stack = _get_current_function_mode_stack()
        with neutral_state("cpu"):
            seen = outer.seen, inner.seen
            torch.ones(2).sum()
            assert (outer.seen, inner.seen) == seen
        assert list(map(id, _get_current_function_mode_stack())) == list(map(id, stack))
        assert torch.ones(2).device.type == "meta"
        assert inner.seen > seen[1]


def test_another_threads_state_is_not_touched() -> None:
    inside, checked = threading.Event(), threading.Event()
    other: list[State] = []

    def look() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            inside.wait(10)
            other.append(state())
            checked.set()

    thread = threading.Thread(target=look)
    thread.start()
    with neutral_state("cpu"):
        inside.set()
        assert checked.wait(10)
    thread.join()
    assert other[0]["inference"]
    assert other[0]["autocast"]


def test_tensors_made_inside_can_be_written_under_inference_mode_and_without() -> None:
    """Static buffers live through both: an inference tensor could not be written outside."""
    with torch.inference_mode():
        with neutral_state("cpu"):
            buffer = torch.zeros(3)
        buffer[0] = 1
    buffer[1] = 2
    assert buffer.tolist() == [1, 2, 0]
