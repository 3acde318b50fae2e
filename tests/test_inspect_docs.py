"""The examples of docs/findings.md are found as they say; what others name in the gallery; what is rebuilt."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from gallery import tables
from gallery.index import COMMANDS, Step, faults_in, steps
from gallery.tool import alarms, findings, look, missed
from ostinato.graphs.inspect import CODES

PAGE = tables.FINDINGS_PAGE.read_text()
SECTIONS = dict(re.findall(r"^## ([a-z-]+)\n(.*?)(?=^## )", PAGE, re.S | re.M))
# ```py and not ```python: the snippets print nothing, so tests/test_docs.py leaves them to us
EXAMPLES = {code: re.findall(r"^```py\n(.*?)^```", text, re.S | re.M) for code, text in SECTIONS.items()}


def example(code: str, number: int, folder: Path) -> Step:
    """A snippet of the page as a step of the gallery."""
    path = folder / f"example_{code.replace('-', '_')}_{number}.py"
    path.write_text(EXAMPLES[code][number])
    return Step(path, "faulty", faults_in(path.read_text()))


def test_every_code_has_a_section_with_two_examples() -> None:
    assert list(SECTIONS) == list(CODES)
    assert {code for code, found in EXAMPLES.items() if len(found) != 2} == set()
    assert all(code.doc == f"docs/findings.md#{name}" for name, code in CODES.items())


@pytest.mark.parametrize("code", CODES)
def test_failing_example_is_found_at_the_marked_line(code: str, tmp_path: Path) -> None:
    step = example(code, 0, tmp_path)
    assert {fault.codes for fault in step.faults} == {(code,)}
    assert not missed(step, findings(step))


@pytest.mark.parametrize("code", CODES)
def test_mended_example_raises_no_such_alarm(code: str, tmp_path: Path) -> None:
    step = example(code, 1, tmp_path)
    assert not step.faults
    assert code not in {finding.code for finding in alarms(look(step, COMMANDS[code]).findings)}


@pytest.mark.parametrize("step", [pytest.param(step, id=step.name) for step in steps("faulty", "clean")[::16]])
def test_what_others_name_is_as_written(step: Step) -> None:
    written = json.loads(tables.OTHERS_FILE.read_text())
    if written["torch"] != torch.__version__.split("+")[0]:
        pytest.skip(f"written with torch {written['torch']}")
    assert {other: lines[step.name] for other, lines in written["lines"].items()} == {
        other: tables.named_by(other, step) for other in tables.OTHERS
    }


def test_at_least_ten_issues_of_four_projects_are_rebuilt() -> None:
    names = [step.path.stem for step in steps("issues")]
    assert len(names) >= 10
    assert {"pytorch", "vllm", "sglang", "transformers"} <= {name.split("_")[0] for name in names}
