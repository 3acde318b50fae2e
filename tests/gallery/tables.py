"""The parts of the documentation that are made from the gallery: run it to write them anew.

    python tests/gallery/tables.py

The table at the end of docs/findings.md counts what was found in the faulty and the clean steps, by the tool and
by others; docs/public-issues.md shows what the tool says of each rebuilt issue. Tests compare both with what is so.
What others name takes a minute and changes with torch only, so it is kept in others.json; a test takes samples.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))

from gallery.index import COMMANDS, Fault, Step, steps  # noqa: E402
from gallery.tool import alarms, findings, missed  # noqa: E402
from gallery_baselines import lines_of_explain, lines_of_inductor  # noqa: E402
from ostinato.graphs.inspect import Finding, load_target  # noqa: E402

FINDINGS_PAGE = ROOT / "docs" / "findings.md"
ISSUES_PAGE = ROOT / "docs" / "public-issues.md"
OTHERS_FILE = Path(__file__).with_name("others.json")
TABLE = re.compile(
    r"(?<=gallery table: python tests/gallery/tables.py -->\n).*?(?=<!-- end of gallery table -->)", re.S
)

Lines = Mapping[str, list[int]]
"""By a step's name: the lines of its file that somebody names."""

OTHERS: dict[str, Callable[[Any, Any], set[tuple[str, int]]]] = {
    "`explain`": lines_of_explain,
    "Inductor's log": lines_of_inductor,
}
_OWNERS = {
    "pytorch": "pytorch",
    "sglang": "sgl-project",
    "torchtitan": "pytorch",
    "transformers": "huggingface",
    "vllm": "vllm-project",
}
_ISSUES_HEAD = """\
# Public issues, rebuilt

Bugs of PyTorch, vLLM, SGLang, transformers and torchtitan, each rebuilt as a small step in `tests/gallery/issues` and
shown to the tool, without a GPU. Below each is what the tool printed. `python tests/gallery/tables.py` writes this
page, and a test compares it with what the tool prints today.
"""


def table() -> str:
    """What stands at the end of docs/findings.md."""
    faulty, clean = steps("faulty"), steps("clean")
    others: dict[str, Lines] = json.loads(OTHERS_FILE.read_text())["lines"]
    rows = [_row(code, faulty, clean, others) for code in COMMANDS]
    totals = [sum(column) for column in zip(*rows, strict=True)]
    head = ["code", "faults", "found", "missed", "false alarms", *(f"found by {name}" for name in others)]
    lines = [_cells(head), _cells(["---", *["---:"] * (len(head) - 1)])]
    lines += [_cells([f"[{code}](#{code})", *row]) for code, row in zip(COMMANDS, rows, strict=True)]
    lines.append(_cells(["**all**", *(f"**{total}**" for total in totals)]))
    complaints = (f"{name} names a line in {sum(bool(by[s.name]) for s in clean)}" for name, by in others.items())
    size = f"{totals[0]} faults in {len(faulty)} steps, and {len(clean)} clean steps."
    return f"{size} Of the clean steps, {' and '.join(complaints)}.\n\n" + "\n".join(lines) + "\n"


def _row(code: str, faulty: Iterable[Step], clean: Iterable[Step], others: Mapping[str, Lines]) -> list[int]:
    there = [(step, fault) for step in faulty for fault in step.faults if fault.code == code]
    lost = [fault for step, fault in there if fault in missed(step, findings(step))]
    false = [step for step in clean if code in {finding.code for finding in alarms(findings(step))}]
    by_others = [sum(_names(lines[step.name], fault) for step, fault in there) for lines in others.values()]
    return [len(there), len(there) - len(lost), len(lost), len(false), *by_others]


def _names(lines: list[int], fault: Fault) -> bool:
    return bool(set(lines) & set(fault.lines))


def _cells(values: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def named_by(other: str, step: Step) -> list[int]:
    """The lines of ``step`` that one of ``OTHERS`` names, at batch size 4."""
    target = load_target(f"{step.path}:step")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = OTHERS[other](target.function, target.inputs(4))
    return sorted(line for file, line in named if file == str(step.path))


def issues_page() -> str:
    """docs/public-issues.md."""
    return "\n".join([_ISSUES_HEAD, *(_section(step) for step in steps("issues"))])


def _section(step: Step) -> str:
    project, number = step.path.stem.split("_")
    url = f"https://github.com/{_OWNERS[project]}/{project}/issues/{number}"
    summary, _, rest = step.path.read_text().partition('"""')[2].partition('"""')[0].partition("\n\n")
    seen = rest.strip().removeprefix("Seen: ")
    source = f"[{step.path.name}](../tests/gallery/issues/{step.path.name})"
    said = "\n".join(_printed(step, finding) for finding in alarms(findings(step)))
    return (
        f"## {project}#{number}\n\n[Issue]({url}) · {source}\n\n"
        f"What was seen: {seen}\n\nThe cause: {summary.partition(': ')[2]}\n\n"
        f"```text\n$ {_command(step)}\n{said}\n```\n"
    )


def _printed(step: Step, finding: Finding) -> str:
    place = f"{Path(finding.file).name}:{finding.line}" if finding.file else step.path.name
    evidence = f"\n    {finding.evidence}" if finding.evidence else ""
    return f"{place}: {finding.severity} {finding.code}: {finding.message}{evidence}\n    fix: {finding.fix}"


def _command(step: Step) -> str:
    command, _, option = step.commands[0].partition(" ")
    sizes = {
        "lint": "--batch-sizes 4",
        "breaks": "--batch-sizes 1,2,4",
        "emulate": f"--batch-size 8 --steps 3 {option}",
    }
    return f"ostinato graph {command} {step.path.name}:step {sizes[command]}"


def write() -> None:
    """Write both pages, and others.json."""
    lines = {other: {step.name: named_by(other, step) for step in steps("faulty", "clean")} for other in OTHERS}
    OTHERS_FILE.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "lines": lines}, indent=1) + "\n")
    FINDINGS_PAGE.write_text(TABLE.sub(lambda _: table(), FINDINGS_PAGE.read_text()))
    ISSUES_PAGE.write_text(issues_page())


if __name__ == "__main__":
    write()
