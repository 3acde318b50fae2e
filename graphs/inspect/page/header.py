"""The top of the page: target, verdict, counts, anchors; and its end: which files, made where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ostinato.graphs.inspect.page.documents import Document, Sizes, Startup, Timeline
from ostinato.graphs.inspect.page.finding_table import severity_chip
from ostinato.graphs.inspect.page.markup import Markup, element, table
from ostinato.graphs.inspect.page.quantities import bytes_text, plural
from ostinato.graphs.inspect.page.steps import Data
from ostinato.graphs.inspect.report import SEVERITIES

_KINDS = {Timeline: "timeline", Sizes: "batch sizes", Startup: "start-up"}


def header(
    title: str, documents: Sequence[Document], findings: Sequence[Data], anchors: Sequence[tuple[str, str]]
) -> Markup:
    """Return title, verdict, counts, environment in a line, and links to the sections."""
    counts = Counter(finding["severity"] for finding in findings)
    checked = any(document.record is None for document in documents)
    clean = not counts["error"] and not counts["warning"]
    verdict = element("strong", "clean" if clean else "findings", class_=f"verdict {'clean' if clean else 'found'}")
    chips = [
        element("span", severity_chip(severity), element("b", f" {counts[severity]}"), class_="count-of")
        for severity in SEVERITIES
    ]
    targets = dict.fromkeys(str(document.data["target"]) for document in documents if "target" in document.data)
    links = [element("a", name, href=f"#{identity}") for identity, name in anchors]
    return element(
        "header",
        element("button", "theme", type="button", id="theme", class_="script-only", aria_label="light or dark"),
        element("h1", title),
        element("p", ", ".join(targets), class_="targets") if list(targets) != [title] and targets else None,
        element("p", [verdict, *chips] if checked else None, class_="verdicts"),
        element("p", _environment_line(documents), class_="quiet"),
        element("nav", links, aria_label="sections"),
    )


def documents_table(documents: Sequence[Document]) -> list[Markup]:
    """Return a table of the files, and the metrics and environment of each."""
    rows = [
        element(
            "tr",
            element("th", document.name, scope="row"),
            element("td", _kind(document)),
            element("td", str(document.data.get("target", ""))),
        )
        for document in documents
    ]
    folded = [
        _facts(f"{what} of {document.name}", document.data[field])
        for document in documents
        for field, what in (("metrics", "metrics"), ("environment", "environment"))
        if document.data.get(field)
    ]
    return [table(("file", "kind", "target"), rows), *folded]


def _kind(document: Document) -> str:
    if document.is_capture:
        return f"capture of {plural(len(document.graphs), 'batch size')}"
    return _KINDS.get(type(document.record), "report")


def _environment_line(documents: Sequence[Document]) -> str:
    captures_first = sorted(documents, key=lambda document: not document.is_capture)
    environments = [document.data["environment"] for document in captures_first if document.data.get("environment")]
    if not environments:
        return ""
    first: Mapping[str, object] = environments[0]
    parts = [str(first.get("device") or "")]
    if first.get("device") == "cpu" and first.get("cpu"):
        parts = [f"cpu: {first['cpu']}"]
    parts += [f"{name} {first[name]}" for name in ("torch", "triton", "cuda", "python", "ostinato") if first.get(name)]
    rate = first.get("read_bandwidth")
    if isinstance(rate, int | float):
        parts.append(f"{bytes_text(rate)}/s measured")
    others = sum(environment != first for environment in environments)
    return " · ".join(filter(None, parts)) + (" · other environments below" if others else "")


def _facts(title: str, data: Mapping[str, object]) -> Markup:
    rows = [
        element("tr", element("th", name, scope="row"), element("td", element("code", _shown(value))))
        for name, value in data.items()
    ]
    return element("details", element("summary", title), table(("name", "value"), rows))


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 400 else f"{text[:400]}… ({len(text):,} characters)"
