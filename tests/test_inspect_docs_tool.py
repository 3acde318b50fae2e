"""docs/graph-tool.md says what is so: its files are written, its commands run, and print what the page shows.

``python tests/test_inspect_docs_tool.py`` writes anew what they print, where the page shows all of it. In a block a
line ``…`` stands for any lines, and ``…`` within a line for any text. Lines may come in another order (tables are
sorted by time), and times differ.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from ostinato.cli import app
from ostinato.graphs.inspect.capturing.ograph import Buffer, LineBytes, Memory, Node, OGraph, Op, Parameter, SizeGraph
from ostinato.graphs.inspect.cli import ORDER
from ostinato.graphs.inspect.report import Finding, Report

PAGE = Path(__file__).resolve().parent.parent / "docs" / "graph-tool.md"
PLUGIN = "ostinato.graphs.inspect.plugin"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
_TIME = r"\d[\d,.]* ?(?:µs|ms|s)(?![\w/])"
_NOISE = (
    (re.compile(_TIME), "TIME"),
    (re.compile(r"TIME → TIME"), "="),
    (re.compile(r"^seconds +[\d.]+$"), "seconds TIME"),
    (re.compile(r"\b\d+ %"), "SHARE"),
    (re.compile(r"^((?:ops|kernels) \w+) \(\d+\)$"), r"\1"),
    (re.compile(r"[█▏]|(?<![^ ])-+$"), ""),
    (re.compile(r" +"), " "),
)


def commands(page: str) -> list[tuple[str, str]]:
    """Each command of the page and what it shows that it prints."""
    blocks = [body for kind, body in _FENCE.findall(page) if kind == "console"]
    return [(shown.partition("\n")[0], shown.partition("\n")[2]) for body in blocks for shown in split(body)]


def split(body: str) -> list[str]:
    """The commands of one block, each with its output."""
    return [part for part in re.split(r"^\$ ", body, flags=re.M) if part]


def runs(page: str, folder: Path) -> Iterator[str]:
    """Write the page's files and run its commands, in order; gives what each prints."""
    for kind, body in _FENCE.findall(page):
        if name := re.match(r"# (\S+\.(?:py|json))\n", body):
            (folder / name[1]).write_text(body[name.end() :] if kind == "json" else body)
        if kind == "console":
            yield from (run(part.partition("\n")[0], folder) for part in split(body))


def run(command: str, folder: Path) -> str:
    """What a command prints; the tool's own run here, where torch is imported already."""
    if not command.startswith("ostinato "):
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": f"-p {PLUGIN}"}
        programs = {"python": sys.executable, "pytest": f"{sys.executable} -m pytest -p no:cacheprovider"}
        program, _, arguments = command.partition(" ")
        line = f"{programs.get(program, program)} {arguments}"
        done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    words, _, asked = command.partition("; ")
    with chdir(folder), mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(folder / "cache")):
        result = CliRunner().invoke(app, words.split()[1:])
    assert result.exit_code < 2 or asked, result.stderr
    error = result.stderr if result.exit_code == 2 else ""
    return result.stdout + error + (f"exit code {result.exit_code}\n" if asked else "")


def likeness(line: str) -> str:
    """Without what differs from run to run."""
    for pattern, instead in _NOISE:
        line = pattern.sub(instead, line)
    return line.strip()


def lines(text: str) -> list[str]:
    """What is compared: not the versions and the processor, no empty lines."""
    return [alike for line in text.splitlines() if not line.startswith("torch ") and (alike := likeness(line))]


def is_shown(line: str, printed: list[str]) -> bool:
    pattern = re.compile(".*".join(re.escape(part) for part in line.split("…")))
    return any(pattern.fullmatch(each) for each in printed)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return list(runs(PAGE.read_text(), tmp_path_factory.mktemp("page")))


COMMANDS = commands(PAGE.read_text())


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[command for command, _ in COMMANDS])
def test_command_prints_what_the_page_shows(number: int, outputs: list[str]) -> None:
    shown, printed = lines(COMMANDS[number][1]), lines(outputs[number])
    assert [line for line in shown if not is_shown(line, printed)] == [], outputs[number]
    if "…" not in shown:
        assert len(shown) == len(printed), outputs[number]


def test_every_command_has_an_example() -> None:
    run_there = {command.split()[2] for command, _ in COMMANDS if command.startswith("ostinato graph ")}
    assert run_there == set(ORDER)


def test_every_field_is_documented() -> None:
    page = PAGE.read_text()
    report, capture = page.partition("## Reports, field by field")[2].split("## The .ograph file")
    for kind in (Report, Finding):
        names = {field.name for field in fields(kind)} | ({"schema", "verdict"} if kind is Report else set())
        assert {name for name in names if f"`{name}`" not in report} == set()
    for kind in (OGraph, SizeGraph, Op, Node, Parameter, Buffer, Memory, LineBytes):
        assert {field.name for field in fields(kind) if f"`{field.name}`" not in capture} == set()


def test_links_within_the_page_lead_somewhere() -> None:
    page = PAGE.read_text()
    titles = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^##+ (.*)$", page, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= titles


def rewritten(page: str, printed: list[str]) -> str:
    """The page with new outputs; those of which it shows a part stay."""
    outputs = iter(printed)

    def block(found: re.Match[str]) -> str:
        if found[1] != "console":
            return found[0]
        parts = []
        for part in split(found[2]):
            command, _, shown = part.partition("\n")
            output = next(outputs)
            parts.append(f"$ {command}\n{shown if '…' in shown else output}")
        return "```console\n" + "".join(parts) + "```"

    return _FENCE.sub(block, page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(rewritten(PAGE.read_text(), list(runs(PAGE.read_text(), Path(folder)))))
