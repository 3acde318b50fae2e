"""What the tool says of transformers' models, for docs/real-models.md: run it to write the page's parts anew.

    python tests/gallery/models/page.py

In the page, a part begins with ``<!-- tool: WHAT -->`` and ends with ``<!-- end -->``. WHAT is ``versions``,
``table MODEL…``, ``variations MODEL…`` (the same without ``breaks``), or a command and a model, as in
``lint qwen3_window``. The rest of the page is written by hand.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path

import torch
import transformers

from ostinato.graphs import inspect
from ostinato.graphs.inspect import Finding, Report

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[2] / "docs" / "real-models.md"
PART = re.compile(r"(?<=<!-- tool: )(?P<what>[\w ]+)(?P<between> -->\n)(?P<text>.*?)(?=<!-- end -->)", re.S)
MODELS = ("llama", "qwen3", "gpt2", "mixtral")
OPTIONS = {"lint": "--batch-sizes 4", "breaks": "--batch-sizes 2", "emulate": "--batch-size 4 --steps 4"}


@functools.cache
def look(command: str, model: str) -> Report:
    """What ``command`` says of ``model``, imported anew; looked at once in a process."""
    torch.compiler.reset()
    target = inspect.load_target(f"{FOLDER / model}.py:step")
    if command == "lint":
        return inspect.lint(target.function, target.make_inputs, batch_sizes=(4,))
    if command == "breaks":
        return inspect.breaks(target.function, target.make_inputs, batch_sizes=(2,))
    return inspect.emulate(target.function, target.make_inputs, batch_size=4, steps=4, poison_padding=model in MODELS)


def part(what: str) -> str:
    """The text of a part of the page."""
    command, *models = what.split()
    if command == "versions":
        return f"Seen with {versions()}.\n"
    if command in ("table", "variations"):
        return _table(models, compiled=command == "table")
    (model,) = models
    poison = " --poison-padding" if command == "emulate" and model in MODELS else ""
    said = "\n".join(map(_printed, look(command, model).findings))
    return f"```text\n$ ostinato graph {command} {model}.py:step {OPTIONS[command]}{poison}\n{said}\n```\n"


def versions() -> str:
    """What line numbers and findings depend on."""
    return f"transformers {transformers.__version__} and torch {torch.__version__.partition('+')[0]}"


def _table(models: list[str], compiled: bool) -> str:
    head = ["step", "`lint`", "ATen calls", *(["`breaks`"] if compiled else []), "`emulate`"]
    rows = [head, ["---"] * len(head), *(_row(model, compiled) for model in models)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(model: str, compiled: bool) -> list[str]:
    lint = look("lint", model)
    calls = lint.metrics["by_batch_size"]["4"]["calls"]
    name = f"[{model}](../tests/gallery/models/{model}.py)"
    return [name, _said(lint), str(calls), *([_compiled(model)] if compiled else []), _replayed(model)]


def _compiled(model: str) -> str:
    numbers = look("breaks", model).metrics
    return ", ".join(f"{name}: {numbers[name]}" for name in ("graphs", "breaks", "recompiles"))


def _replayed(model: str) -> str:
    numbers = look("emulate", model).metrics
    equal = "equal to eager" if numbers["replay_equals_eager"] else "**not** equal to eager"
    return f"{numbers['replays']} of {numbers['steps']} steps replayed, {equal}"


def _said(report: Report) -> str:
    """As in "error: 2 frozen-value, 1 device-sync"."""
    counts = Counter((finding.severity, finding.code) for finding in report.findings)
    by_severity: dict[str, list[str]] = {}
    for (severity, code), number in counts.items():
        by_severity.setdefault(severity, []).append(f"{number} {code}")
    return "; ".join(f"{severity}: {', '.join(codes)}" for severity, codes in by_severity.items()) or "clean"


def _printed(finding: Finding) -> str:
    evidence = f"\n    {_short(finding.evidence)}" if finding.evidence else ""
    return f"{_place(finding)}{finding.severity} {finding.code}: {finding.message}{evidence}\n    fix: {finding.fix}"


def _place(finding: Finding) -> str:
    return f"{_short(finding.file)}:{finding.line}: " if finding.file else ""


def _short(text: str) -> str:
    """``text`` without the folders in which packages and this gallery lie."""
    return text.replace(f"{Path(transformers.__file__).parents[1]}/", "").replace(f"{FOLDER}/", "")


def written() -> str:
    """The page, its parts made anew."""
    return PART.sub(lambda found: found["what"] + found["between"] + part(found["what"]), PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(written())
