"""The findings of all files in one table, and what was not checked. A filter by severity needs no script."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ostinato.graphs.inspect.page.documents import Document
from ostinato.graphs.inspect.page.markup import Child, Markup, element, table
from ostinato.graphs.inspect.page.places import Places
from ostinato.graphs.inspect.page.quantities import plural
from ostinato.graphs.inspect.page.steps import Data
from ostinato.graphs.inspect.report import SEVERITIES

_DOC = re.compile(r"docs/[\w./-]+(#[\w-]+)?")
_SIGNS = {"error": "✕", "warning": "▲", "info": "i"}
_KEY = ("code", "severity", "file", "line", "op", "message")


def pool(documents: Sequence[Document]) -> list[Data]:
    """All findings once each, errors first, then by file and line."""
    first: dict[tuple[object, ...], Data] = {}
    for document in documents:
        for finding in document.findings:
            first.setdefault(tuple(finding[name] for name in _KEY), finding)
    rank = SEVERITIES.index
    return sorted(first.values(), key=lambda f: (rank(f["severity"]), f["file"] or "", f["line"] or 0, f["code"]))


def finding_section(findings: Sequence[Data], documents: Sequence[Document], places: Places) -> list[Markup]:
    """Return filter, table and the list of what was not checked."""
    if findings:
        rows = [_row(number, finding, places) for number, finding in enumerate(findings)]
        body = [_filter(findings), table(("finding", "place", "what and why", "what to write instead"), rows)]
    else:
        body = [element("p", "No findings.", class_="empty")]
    return [*body, *_not_checked(documents)]


def severity_chip(severity: str) -> Markup:
    """A severity by colour, sign and word."""
    return element("span", f"{_SIGNS[severity]} {severity}", class_=f"chip {severity}")


def _filter(findings: Sequence[Data]) -> Markup:
    counts = Counter(finding["severity"] for finding in findings)
    boxes = [
        element(
            "label",
            element("input", type="checkbox", id=f"show-{severity}", checked=""),
            " ",
            plural(counts[severity], severity),
        )
        for severity in SEVERITIES
        if counts[severity]
    ]
    return element("div", boxes, class_="controls", role="group", aria_label="severities shown")


def _row(number: int, finding: Data, places: Places) -> Markup:
    file, line = finding["file"], finding["line"]
    return element(
        "tr",
        element("td", severity_chip(finding["severity"]), element("code", finding["code"], class_="finding-code")),
        element(
            "td",
            places.link(file, line),
            element("code", finding["op"], class_="op") if finding["op"] else None,
            places.code(file, line),
        ),
        element(
            "td",
            element("p", finding["message"]),
            element("p", finding["evidence"], class_="quiet") if finding["evidence"] else None,
        ),
        element("td", element("p", finding["fix"]), _doc(finding["doc"])),
        id=f"f{number}",
        class_=f"finding {finding['severity']}",
        tabindex="-1",
    )


def _doc(doc: str) -> Child:
    """The page that explains a code: a link only if it leads into the documentation."""
    if not doc:
        return None
    return element("a", doc, href=doc, class_="doc") if _DOC.fullmatch(doc) else element("span", doc, class_="doc")


def _not_checked(documents: Sequence[Document]) -> list[Markup]:
    sentences: dict[str, None] = {}
    for document in documents:
        sentences |= dict.fromkeys(document.data.get("not_checked", ()))
    if not sentences:
        return []
    items = [element("li", sentence) for sentence in sentences]
    return [element("h3", "Not checked", id="not-checked"), element("ul", items, class_="not-checked")]
