"""The pytest plugin: the tool's assertions as fixtures, and ``--ostinato-json DIR`` to keep their reports.

    def test_decode(assert_capture_safe):
        assert_capture_safe(decode, make_inputs, batch_sizes=(1, 8))

Registered by entry point, so it is there wherever ostinato is installed; ``-p no:ostinato`` leaves it out. torch is
imported when an assertion is called, not before.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ostinato.graphs.inspect.report import Report

Check = Callable[..., "Report"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--ostinato-json``."""
    group = parser.getgroup("ostinato", "graph capture of PyTorch steps (ostinato)")
    group.addoption(
        "--ostinato-json",
        metavar="DIR",
        default=None,
        help="Save the report of each assertion there, as JSON that `ostinato graph report` and `check` read.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder before any test runs, and the path one that workers of pytest-xdist find too."""
    given = config.getoption("--ostinato-json")
    if given is None:
        return
    folder = Path(config.invocation_params.dir, given).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"--ostinato-json: no folder {given}: {error.strerror}") from error
    config.option.ostinato_json = str(folder)


@pytest.fixture
def assert_capture_safe(request: pytest.FixtureRequest) -> Check:
    """``assert_capture_safe(fn, make_inputs, batch_sizes=(1, 2, 4, 8), variants=3)``: no capture hazard in the step."""
    return _check(request, "assert_capture_safe")


@pytest.fixture
def assert_no_recompile(request: pytest.FixtureRequest) -> Check:
    """``assert_no_recompile(fn, make_inputs, batch_sizes=(1, 2, 4, 8), variants=3)``: it is compiled once."""
    return _check(request, "assert_no_recompile")


@pytest.fixture
def assert_replay_equals_eager(request: pytest.FixtureRequest) -> Check:
    """``assert_replay_equals_eager(fn, make_inputs, batch_size=8, steps=4)``: a replay does what the step does."""
    return _check(request, "assert_replay_equals_eager")


@pytest.fixture
def assert_padding_isolated(request: pytest.FixtureRequest) -> Check:
    """``assert_padding_isolated(fn, make_inputs, batch_size=8)``: padding rows change no real row."""
    return _check(request, "assert_padding_isolated")


def _check(request: pytest.FixtureRequest, name: str) -> Check:
    folder = request.config.getoption("--ostinato-json")
    files = None if folder is None else _files(Path(folder), request.node.nodeid, name)

    def check(*args: Any, **options: Any) -> Report:
        __tracebackhide__ = True
        from ostinato.graphs.inspect import assertions

        try:
            report: Report = getattr(assertions, name)(*args, **options)
        except assertions.CheckFailed as failure:
            _save(failure.report, files)
            raise
        _save(report, files)
        return report

    return check


def _files(folder: Path, test: str, name: str) -> Iterator[Path]:
    """A file for each call: named by the test, and by a sum for names that differ in other characters only."""
    stem = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', test)[-120:].strip('-')}-{zlib.crc32(test.encode()):08x}-{name}"
    return (folder / f"{stem}{f'-{number}' if number > 1 else ''}.json" for number in itertools.count(1))


def _save(report: Report, files: Iterator[Path] | None) -> None:
    if files is not None:
        next(files).write_text(report.as_json() + "\n", encoding="utf-8")
