"""``verify``: first the module, then the operation; here the emulated graph takes the CUDA graph's place."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inspect_steps import Attention, Paged, hidden, line, paged_inputs
from ostinato.graphs.inspect.assertions import assert_padding_isolated, assert_replay_equals_eager
from ostinato.graphs.inspect.replays.replayer import EmulatedReplayer
from ostinato.graphs.inspect.replays.side_buffers import SideBuffers
from ostinato.graphs.inspect.replays.step_run import StepRunner
from ostinato.graphs.inspect.replays.verification import verify, verify_target
from ostinato.graphs.inspect.target import as_target
from ostinato.layers.errors import CaptureError


def test_a_faithful_step_is_clean_and_says_what_took_the_graphs_place() -> None:
    report = verify(Paged(static_bound=True).eval(), paged_inputs)
    assert report.verdict == "clean", report.findings
    assert report.metrics["modules"] == 7 and report.metrics["noise_floor"] == 0.0
    assert any("emulated graph" in sentence for sentence in report.not_checked)


def test_the_first_module_and_in_it_the_first_operation_that_differ() -> None:
    report = verify(Paged(static_bound=False).eval(), paged_inputs)
    first = report.metrics["first_divergence"]
    assert (first["first_module"], first["module"]) == ("layers.0.out", "layers.0")
    assert (first["op"], first["line"]) == ("aten.slice.Tensor", line(Attention.forward, "keys = "))
    assert (report.errors[0].code, report.errors[0].line) == ("frozen-value", line(Attention.forward, "keys = "))


class Broken(EmulatedReplayer):
    """A graph that computes something else in one place, as a wrong kernel would."""

    def replay(self) -> None:
        super().replay()
        calls = self.graph.calls
        wrong = next(n for n, call in enumerate(calls) if "tanh" in str(call.op))  # type: ignore[union-attr]
        calls[wrong].outputs[0].add_(1)  # type: ignore[union-attr]
        for call in calls[wrong + 1 :]:
            call.replay()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_a_kernel_that_is_wrong_is_found_with_its_module() -> None:
    report = verify_target(as_target(Two().eval(), hidden), make_replayer=lambda runner, _: Broken(runner))
    first = report.metrics["first_divergence"]
    assert (first["first_module"], first["op"], first["module"]) == ("second.1", "aten.tanh.default", "second.1")
    assert first["difference"] == pytest.approx(1.0)
    assert "aten.tanh.default gives other values at replay" in report.errors[0].message


class Refusing(EmulatedReplayer):
    def capture(self, args: tuple[Any, ...], side: SideBuffers) -> Any:
        raise CaptureError("operation not permitted when stream is capturing")


def test_a_refused_capture_is_a_finding() -> None:
    report = verify_target(as_target(Two().eval(), hidden), make_replayer=lambda runner, _: Refusing(runner))
    assert [finding.code for finding in report.errors] == ["device-sync"]
    assert "not permitted" in report.errors[0].message


def test_what_is_closer_than_two_eager_runs_is_no_difference() -> None:
    """Its numbers are off from run to run, whatever the seed: as those of atomic additions on a GPU."""
    noise = itertools.cycle([0.0, 1e-3])

    @torch.library.custom_op("ostinato_tests::noisy", mutates_args=())
    def noisy(x: Tensor) -> Tensor:
        return x + next(noise)

    report = verify(lambda x: torch.ops.ostinato_tests.noisy(x).sum(-1), hidden)
    assert report.metrics["noise_floor"] > 0 and not report.errors


def test_side_buffers_keep_modules_or_operations() -> None:
    runner = StepRunner(as_target(Two().eval(), hidden), 2, 60.0)
    inputs = runner.inputs(0)
    names = runner.reach(inputs).modules
    modules = SideBuffers(names)
    runner.run(inputs, listener=modules)
    assert [each.name for each in modules.given] == ["first", "second.0", "second.1", "second.2", "second", "Two"]
    inside = SideBuffers(names, range(modules.given[1].ran, modules.given[2].ran))
    runner.run(inputs, listener=inside)
    assert [(each.name, each.module) for each in inside.given] == [("aten.tanh.default", "second.1")]


# Assertions for tests.


def test_assert_replay_equals_eager() -> None:
    assert_replay_equals_eager(Paged(static_bound=True).eval(), paged_inputs)
    with pytest.raises(AssertionError, match=r"inspect_steps.py:\d+  frozen-value  aten.slice.Tensor"):
        assert_replay_equals_eager(Paged(static_bound=False).eval(), paged_inputs)


def test_assert_padding_isolated() -> None:
    assert_padding_isolated(lambda x: x.softmax(-1), hidden)
    with pytest.raises(AssertionError, match=r"padding-leak  aten\._softmax\.default\n"):
        assert_padding_isolated(lambda x: x.softmax(0), hidden)
