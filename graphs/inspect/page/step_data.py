"""What the script needs to draw any step of a capture at any zoom: numbers, and each text once.

``ops``, ``sites``, ``leaves`` and ``blocks`` are rows whose columns are named by ``OP``, ``SITE``, ``LEAF`` and
``BLOCK``, without the zeros at their ends. A text is its place in ``strings``, 0 being none. What an operator has in
every size is its site, written once. A leaf that is an operator without a node is that operator's number alone.
``page.js`` reads them by these names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ostinato.graphs.inspect.page.lanes import CHANGES, HEIGHTS, block_class, marks_of, op_colour
from ostinato.graphs.inspect.page.markup import Markup, element
from ostinato.graphs.inspect.page.places import Places
from ostinato.graphs.inspect.page.steps import Data, Leaf, Step, component_names

SITE = ("op", "api", "module", "place", "function", "marks", "findings", "inputs", "outputs")
OP = ("site", "shapes", "read", "written", "flops", "ns", "share", "colour", "change", "note")
BLOCK = ("depth", "first", "last", "path", "name", "colour")
LEAF = ("op", "ns", "bytes", "colour", "name", "launch", "arguments")


class Strings:
    """Every text once."""

    def __init__(self) -> None:
        self.all: list[str] = [""]
        self._index: dict[str, int] = {"": 0}

    def index(self, text: str | None) -> int:
        """The place of ``text``, added if it is new."""
        text = text or ""
        if text not in self._index:
            self._index[text] = len(self.all)
            self.all.append(text)
        return self._index[text]


class Sites:
    """What an operator has in every size, once."""

    def __init__(self, findings: Sequence[Data], places: Places, strings: Strings) -> None:
        self.all: list[list[Any]] = []
        self._index: dict[str, int] = {}
        self._findings, self._places, self._text = findings, places, strings.index

    def index(self, op: Data, findings: Sequence[int]) -> int:
        """The place of the site of ``op``, which ``findings`` are about, added if it is new."""
        text = self._text
        row = _trimmed(
            (
                text(op["op"]), text(op["api"]), text(op["module"]), text(self._places.name(op["file"], op["line"])),
                text(op["function"]), text(" ".join(marks_of(self._findings, findings))), list(findings) or 0,
                text(", ".join(op["inputs"])), text(", ".join(op["outputs"])),
            )
        )  # fmt: skip
        key = str(row)
        if key not in self._index:
            self._index[key] = len(self.all)
            self.all.append(row)
        return self._index[key]


def step_script(
    steps: Sequence[Step], findings: Sequence[Data], places: Places, strings: Strings, identity: str
) -> Markup:
    """Return the ``script`` element that holds the data of a capture."""
    sites = Sites(findings, places, strings)
    of_steps = [_step(step, sites, strings) for step in steps]
    lines = {(op["file"], op["line"]) for step in steps for op in step.ops if op["file"]}
    data = {
        "op": OP,
        "site": SITE,
        "leaf": LEAF,
        "block": BLOCK,
        "heights": HEIGHTS,
        "changes": CHANGES,
        "sites": sites.all,
        "steps": of_steps,
        "sources": {
            strings.index(places.name(file, line)): strings.index(places.source(file, line))
            for file, line in sorted(lines, key=lambda place: (place[0], place[1] or 0))
        },
        "findings": [f"{finding['severity']}: {finding['code']}: {finding['message']}" for finding in findings],
        "strings": strings.all,
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", id=f"{identity}-data")


def _step(step: Step, sites: Sites, strings: Strings) -> dict[str, Any]:
    text = strings.index
    return {
        "size": step.size,
        "timed": step.timed,
        "diff": bool(step.changes),
        "blocks": [
            [b.depth, b.first, b.last, text(b.path), text(component_names(b.path)[-1]),
             text(block_class(step, b.first, b.last))]
            for b in step.blocks
        ],
        "ops": [_trimmed(_op(step, number, sites, text)) for number in range(len(step.ops))],
        "leaves": [leaf.op if leaf.node is None else _trimmed(_leaf(leaf, leaf.node, text)) for leaf in step.leaves],
    }  # fmt: skip


def _op(step: Step, number: int, sites: Sites, text: Callable[[str], int]) -> Iterable[Any]:
    op, (first, last) = step.ops[number], step.ranges[number]
    leaves = step.leaves[first:last]
    shares = [(leaf.share, leaf.seconds) for leaf in leaves if leaf.share is not None]
    time = sum(took for _, took in shares)
    return (
        sites.index(op, step.findings[number]), text(op["shapes"]), op["bytes_read"], op["bytes_written"], op["flops"],
        _nanoseconds(sum(leaf.seconds for leaf in leaves)),
        round(1000 * sum(share * took for share, took in shares) / time) if time else -1,
        text(op_colour(step, number)), text(step.changes[number] if step.changes else ""),
        text(step.notes[number] if step.notes else ""),
    )  # fmt: skip


def _leaf(leaf: Leaf, node: Data, text: Callable[[str], int]) -> Iterable[Any]:
    named = ", ".join(parameter["buffer"] for parameter in node["parameters"] if parameter["buffer"])
    op = -1 if leaf.op is None else leaf.op
    place = (op, _nanoseconds(leaf.seconds), round(leaf.bytes), text(leaf.colour))
    return (*place, text(node_name(node)), text(launch_text(node)), text(named))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def node_name(node: Data) -> str:
    """A kernel's name, or the type of another node."""
    name = str(node["name"])
    return name or str(node["type"])


def launch_text(node: Data) -> str:
    """Grid, block and shared memory, as in "grid 24×1×1, block 128×1×1"."""
    parts = [f"{word} {'×'.join(str(n) for n in node[word])}" for word in ("grid", "block") if node.get(word)]
    if node.get("shared_bytes"):
        parts.append(f"{node['shared_bytes']:,} B shared")
    return ", ".join(parts)


def _trimmed(values: Iterable[Any]) -> list[Any]:
    """Without the zeros at the end."""
    kept = list(values)
    while kept and kept[-1] == 0:
        kept.pop()
    return kept
