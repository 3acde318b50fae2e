"""Two captures compared: totals, sizes and findings that came and went, the painted lanes, every change with numbers.

Came is +, went is −, changed is ~: by sign, word and lane, not by colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ostinato.graphs.inspect.page.changes import (
    Change,
    Group,
    bytes_change,
    changes_of,
    groups_of,
    seconds_change,
    step_of_changes,
)
from ostinato.graphs.inspect.page.documents import Document
from ostinato.graphs.inspect.page.lanes import CHANGES
from ostinato.graphs.inspect.page.markup import Child, Markup, element, number, number_head, table
from ostinato.graphs.inspect.page.places import Places
from ostinato.graphs.inspect.page.quantities import DASH, bytes_text, count_text, plural, seconds_text, signed
from ostinato.graphs.inspect.page.step_data import Strings
from ostinato.graphs.inspect.page.step_section import step_figure
from ostinato.graphs.inspect.page.steps import Data

_MOVED = ("bytes_read", "bytes_written")
_ROWS = 200


def diff_section(old: Document, new: Document, findings: Sequence[Data], places: Places, identity: str) -> list[Markup]:
    """Return the comparison of two captures; ``new`` is what came of ``old``."""
    before, after = old.graphs, new.graphs
    common = [size for size in after if size in before]
    changes = {size: changes_of(before[size], after[size]) for size in common}
    parts = [
        element("p", "old: ", element("b", old.name), " · new: ", element("b", new.name)),
        *_size_notes(before, after),
        *_finding_notes(old, new, places),
    ]
    if not common:
        return [*parts, element("p", "The two captures have no batch size in common.", class_="empty")]
    steps = [step_of_changes(size, changes[size], findings) for size in common]
    title = f"{old.name} and {new.name}: operators that came, went and changed"
    parts.append(step_figure(steps, findings, places, Strings(), identity, title))
    parts.append(_totals(before, after, common))
    parts.append(element("p", "Views, which move nothing, are left out of the lanes and the changes.", class_="quiet"))
    for size in common:
        parts.append(_change_table(size, changes[size], places, identity, size == common[-1]))
    return parts


def _size_notes(before: Mapping[int, Data], after: Mapping[int, Data]) -> list[Markup]:
    came, went = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    sizes = [("came", size) for size in came] + [("went", size) for size in went]
    chips = [_chip(kind, f"batch size {size}") for kind, size in sizes]
    return [element("p", chips, class_="legend")] if chips else []


def _finding_notes(old: Document, new: Document, places: Places) -> list[Markup]:
    """Findings by code, operator and message: a line may have moved."""

    def keys(document: Document) -> dict[tuple[object, ...], Data]:
        return {(f["code"], f["file"], f["op"], f["message"]): f for f in document.findings}

    before, after = keys(old), keys(new)
    rows = [("came", after[key]) for key in after if key not in before]
    rows += [("went", before[key]) for key in before if key not in after]
    items = [
        element(
            "li",
            _chip(kind, f"{finding['severity']} {finding['code']}"),
            " ",
            places.link(finding["file"], finding["line"]),
            " ",
            element("del" if kind == "went" else "span", finding["message"]),
        )
        for kind, finding in rows
    ]
    return [element("h3", "findings"), element("ul", items, class_="changes")] if items else []


def _totals(before: Mapping[int, Data], after: Mapping[int, Data], common: Sequence[int]) -> Markup:
    measures: tuple[tuple[str, Callable[[Data], float | None], Callable[[float | None], str]], ...] = (
        ("operators", lambda graph: len(graph["ops"]), count_text),
        ("nodes", lambda graph: len(graph["nodes"]) or None, count_text),
        ("bytes moved", lambda graph: sum(op[field] for op in graph["ops"] for field in _MOVED), bytes_text),
        ("replay", lambda graph: graph["replay_seconds"], seconds_text),
        ("own memory", lambda graph: graph["memory"]["own_bytes"], bytes_text),
    )
    rows = [
        element(
            "tr",
            element("th", size, scope="row", class_="number"),
            [_old_to_new(measure(before[size]), measure(after[size]), text) for _, measure, text in measures],
        )
        for size in common
    ]
    head = number_head("batch size", *(title for title, _, _ in measures))
    return table(head, rows, "old → new", class_="totals")


def _old_to_new(old: float | None, new: float | None, text: Callable[[float | None], str]) -> Markup:
    if old == new:
        return number(text(new), class_="number quiet")
    difference: Child = None
    if old is not None and new is not None:
        share = f" ({signed(f'{abs(new - old) / old:.1%}', new - old)})" if old else ""
        difference = element("small", f"{signed(text(new - old), new - old)}{share}")
    return number([f"{text(old)} → {text(new)}", difference])


def _change_table(size: int, changes: Sequence[Change], places: Places, identity: str, is_open: bool) -> Markup:
    groups = groups_of(changes)
    counts = {kind: sum(change.kind == kind for change in changes) for kind in CHANGES}
    summary = ", ".join(f"{sign}{count_text(counts[kind])} {kind}" for kind, sign in CHANGES.items() if kind != "same")
    rows = [_group_row(group, places) for group in groups[:_ROWS]]
    head = ["change", "operator and module", "line", *number_head("times", "bytes", "time"), "what"]
    rest = len(groups) - _ROWS
    return element(
        "details",
        element("summary", f"batch size {size}: {summary}"),
        table(head, rows) if rows else element("p", "Both steps are the same.", class_="empty"),
        element("p", f"and {plural(rest, 'smaller change')}", class_="quiet") if rest > 0 else None,
        class_="per-size",
        data_of=identity,
        data_size=size,
        open="" if is_open else None,
    )


def _group_row(group: Group, places: Places) -> Markup:
    member = group.members[0]
    op = member.op
    name = element("del" if member.kind == "went" else "span", element("code", op["op"]))
    moved, took = group.difference(*_MOVED), group.difference("seconds")
    what = member.note if member.kind == "changed" else op["shapes"]
    return element(
        "tr",
        element("td", _chip(member.kind, member.kind)),
        element("td", name, element("div", group.module, class_="quiet")),
        element("td", places.link(op["file"], op["line"]), places.code(op["file"], op["line"])),
        number(len(group.members)),
        number(bytes_change(moved) if moved else DASH),
        number(seconds_change(took) if took else DASH),
        element("td", what, class_="quiet"),
        class_=f"change {member.kind}",
    )


def _chip(kind: str, text: str) -> Markup:
    return element("span", f"{CHANGES[kind]} {text}", class_=f"chip {kind}")
