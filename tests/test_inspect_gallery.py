"""The tool finds every fault of the gallery at its line, and none in the clean steps, as docs/ says."""

from __future__ import annotations

import contextlib
import io

import pytest

from gallery import tables
from gallery.index import COMMANDS, Fault, Step, faults_in, steps
from gallery.tool import alarms, findings, missed
from ostinato.graphs.inspect import CODES, load_target

FAULTY = steps("faulty")
CLEAN = steps("clean")
ISSUES = steps("issues")


def parameters(of: tuple[Step, ...]) -> list[object]:
    return [pytest.param(step, id=step.name) for step in of]


@pytest.mark.parametrize("step", parameters(FAULTY + ISSUES))
def test_every_fault_is_found_at_its_line(step: Step) -> None:
    found = findings(step)
    assert not missed(step, found), "\n".join(f"{f.severity} {f.code} {f.line}: {f.message}" for f in found)


@pytest.mark.parametrize("step", parameters(CLEAN))
def test_clean_step_raises_no_alarm(step: Step) -> None:
    assert not alarms(findings(step))


@pytest.mark.parametrize("step", parameters(FAULTY + CLEAN + ISSUES))
def test_step_runs_as_plain_pytorch(step: Step) -> None:
    target = load_target(f"{step.path}:step")
    with contextlib.redirect_stdout(io.StringIO()):
        for variant in range(3):
            target.function(*target.inputs(4, variant))


def test_every_code_has_several_spellings() -> None:
    counts = {code: sum(any(code == fault.code for fault in step.faults) for step in FAULTY) for code in CODES}
    assert set(COMMANDS) == set(CODES)
    assert not {code: count for code, count in counts.items() if count < 3}


def test_the_gallery_is_as_large_as_it_says() -> None:
    assert len(FAULTY) >= 44 and len(CLEAN) >= 22 and len(ISSUES) >= 10
    assert all(step.faults for step in FAULTY + ISSUES)
    assert not any(step.faults for step in CLEAN)


def test_marks_are_read() -> None:
    text = "a  # FAULT: rng\nb  # FAULT: rng, device-sync\nc  # FAULT: rng or cpu-tensor\n"
    assert faults_in(text) == (
        Fault(("rng",), (1,)),
        Fault(("rng",), (2,)),
        Fault(("device-sync",), (2,)),
        Fault(("rng", "cpu-tensor"), (3,)),
    )
    assert faults_in("a  # FAULT: rng (either)\nb  # FAULT: rng (either)") == (Fault(("rng",), (1, 2)),)
    with pytest.raises(ValueError, match="no mark"):
        faults_in("a  # FAULT: slow")


def test_table_counts_what_is_found() -> None:
    written = tables.TABLE.search(tables.FINDINGS_PAGE.read_text())
    assert written is not None
    assert written[0] == tables.table(), "run `python tests/gallery/tables.py`"


def test_public_issues_show_what_the_tool_prints() -> None:
    assert tables.ISSUES_PAGE.read_text() == tables.issues_page(), "run `python tests/gallery/tables.py`"
