"""The pytest plugin: its fixtures in a suite of their own, what a failure says; collecting imports no torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ostinato.graphs import inspect
from ostinato.graphs.inspect.report import Report

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = "ostinato.graphs.inspect.plugin"
SUITE = """
import pytest
import torch


def safe(x):
    return torch.relu(x)


def unsafe(x):
    return x * x.sum().item()


def grows(x, n):
    return x + n


def leaks(x):
    return x - x.mean(0)


def inputs(batch_size, variant=0):
    return (torch.arange(batch_size * 4.0).view(batch_size, 4) + variant,)


def growing(batch_size, variant=0):
    return (*inputs(batch_size), 3 * variant)


def test_safe(assert_capture_safe, assert_no_recompile, assert_replay_equals_eager, assert_padding_isolated):
    assert assert_capture_safe(safe, inputs, batch_sizes=(2,)).verdict == "clean"
    assert assert_no_recompile(safe, inputs, batch_sizes=(2,)).metrics["recompiles"] == 0
    assert assert_replay_equals_eager(safe, inputs, batch_size=2).metrics["replay_equals_eager"]
    assert assert_padding_isolated(safe, inputs, batch_size=2).target == "safe"


def test_unsafe(assert_capture_safe):
    assert_capture_safe(unsafe, inputs, batch_sizes=(2,), name="decode")


def test_recompiles(assert_no_recompile):
    assert_no_recompile(grows, growing, batch_sizes=(2,))


def test_replays(assert_replay_equals_eager):
    assert_replay_equals_eager(grows, growing, batch_size=2)


@pytest.mark.parametrize("case", ["a/b", "a:b"])
def test_leaks(assert_padding_isolated, case):
    for _ in range(2):
        with pytest.raises(AssertionError):
            assert_padding_isolated(leaks, inputs, batch_size=2)
"""


def run_pytest(folder: Path, *arguments: str, plugins: tuple[str, ...] = (PLUGIN,)) -> tuple[int, str]:
    """A suite in a process of its own, with the plugin given by name: it need not be installed anew to be tested."""
    given = [argument for name in plugins for argument in ("-p", name)]
    command = [sys.executable, "-m", "pytest", *given, "-p", "no:cacheprovider", "-q", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "test_steps.py").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def output(suite: Path) -> str:
    """Of the whole suite; reports are saved."""
    code, text = run_pytest(suite, "--ostinato-json", "reports")
    assert code == 1, text
    return text


def test_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"ostinato": PLUGIN}
    assert importlib.util.find_spec(PLUGIN) is not None


def test_installed_entry_point_loads() -> None:
    found = [each for each in importlib.metadata.entry_points(group="pytest11") if each.name == "ostinato"]
    if not found:
        pytest.skip("ostinato was installed before it had a plugin")
    assert found[0].value == PLUGIN


def test_collecting_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    watcher = "import sys\ndef pytest_unconfigure():\n    print('torch:', 'torch' in sys.modules)\n"
    (tmp_path / "conftest.py").write_text(watcher)
    code, text = run_pytest(tmp_path, "--collect-only")
    assert code == 0, text
    assert "torch: False" in text


def test_fixtures_are_listed_with_what_they_take(tmp_path: Path) -> None:
    text = run_pytest(tmp_path, "--fixtures")[1]
    for name in ("capture_safe", "no_recompile", "replay_equals_eager", "padding_isolated"):
        assert f"\nassert_{name} -- " in text


def test_safe_step_passes_and_faulty_ones_fail(output: str) -> None:
    assert "3 failed, 3 passed" in output
    assert {line.split()[1].rpartition("::")[2] for line in output.splitlines() if line.startswith("FAILED")} == {
        "test_unsafe",
        "test_recompiles",
        "test_replays",
    }


@pytest.mark.parametrize(
    ("head", "place", "fix"),
    [
        ("decode is not safe to capture", "test_steps.py:11  device-sync", "keep it as a tensor"),
        ("grows is compiled again", "test_steps.py:15  recompile", "make n a 0-dimensional tensor"),
        ("grows: a replay does not do what the step does", "test_steps.py:15  frozen-value", "make it a tensor"),
    ],
)
def test_failure_says_line_and_fix(output: str, head: str, place: str, fix: str) -> None:
    _, found, after = output.partition(head)
    message = after[:2000]
    assert found
    assert place in message
    assert f"fix:  {fix}" in message


def test_traceback_ends_in_the_test(output: str) -> None:
    assert "graphs/inspect/assertions.py" not in output.replace("inspect.assertions.CheckFailed", "")


def test_reports_are_saved_a_file_for_each_call(output: str, suite: Path) -> None:
    files = sorted((suite / "reports").iterdir())
    assert len(files) == 4 + 3 + 2 * 2
    reports = [Report.from_dict(json.loads(file.read_text())) for file in files]
    assert {report.target for report in reports} == {"safe", "decode", "grows", "leaks"}
    assert sum(not report.errors for report in reports if report.target == "safe") == 4


def test_workers_of_xdist_save_reports_too(suite: Path) -> None:
    arguments = ("-n", "1", "-k", "test_unsafe", "--ostinato-json", "of_worker")
    code, text = run_pytest(suite, *arguments, plugins=(PLUGIN, "xdist"))
    assert code == 1, text
    assert "device-sync" in text
    assert len(list((suite / "of_worker").iterdir())) == 1


def test_folder_that_cannot_be_is_refused(suite: Path) -> None:
    code, text = run_pytest(suite, "--ostinato-json", "test_steps.py")
    assert code == 4
    assert "--ostinato-json: no folder test_steps.py: File exists" in text


def test_assertions_are_functions_for_any_framework() -> None:
    def step(x: object) -> None:
        raise AssertionError("never run")

    for name in ("capture_safe", "no_recompile", "replay_equals_eager", "padding_isolated"):
        assert getattr(inspect, f"assert_{name}").__module__ == "ostinato.graphs.inspect.assertions"
    with pytest.raises(inspect.TargetError, match="make_inputs returned list"):
        inspect.assert_capture_safe(step, lambda batch_size: [])
