"""The whole page of the sections that its files give: ``render`` makes the text, ``write_page`` the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ostinato.graphs.inspect.page.batch_sizes import sizes_section
from ostinato.graphs.inspect.page.colours import scale
from ostinato.graphs.inspect.page.diff_section import diff_section
from ostinato.graphs.inspect.page.documents import Document, Sizes, Startup, Timeline, document_of, read_document
from ostinato.graphs.inspect.page.finding_table import finding_section, pool
from ostinato.graphs.inspect.page.header import documents_table, header
from ostinato.graphs.inspect.page.markup import Markup, element
from ostinato.graphs.inspect.page.matrix import heat_table
from ostinato.graphs.inspect.page.memory import memory_section
from ostinato.graphs.inspect.page.places import Places
from ostinato.graphs.inspect.page.startup import startup_section
from ostinato.graphs.inspect.page.step_data import Strings
from ostinato.graphs.inspect.page.step_section import step_figure, step_tables
from ostinato.graphs.inspect.page.steps import Data, step_of_graph
from ostinato.graphs.inspect.page.timeline import timeline_section
from ostinato.layers.errors import ConfigError

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What is in the page runs; nothing is loaded."""

Section = tuple[str, str, Sequence[Markup]]
"""(identity, title, content)."""


def render(documents: Sequence[Mapping[str, Any]], title: str, diff: bool = False) -> str:
    """Return the page of ``documents`` (plain data of any kind that the tool writes); ``ConfigError`` names the field.

    With ``diff`` two captures, the old one first, are compared; further documents are shown as ever.
    """
    return _page([document_of(data, f"document {number}") for number, data in enumerate(documents, 1)], title, diff)


def write_page(
    paths: Sequence[str | Path], output: str | Path, title: str | None = None, *, diff: bool = False
) -> Path:
    """Read ``paths`` and write the page to ``output``; ``ConfigError`` names the file and the field it cannot read."""
    documents = [read_document(path) for path in paths]
    name = title or next(
        (str(document.data["target"]) for document in documents if "target" in document.data), "graphs"
    )
    text = _page(documents, name, diff)
    output = Path(output)
    try:
        output.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from error
    return output


def _page(documents: Sequence[Document], title: str, diff: bool) -> str:
    if not documents:
        raise ConfigError("a page needs at least one document: a report, a capture, a timeline, sizes or a start-up")
    captures = [document for document in documents if document.is_capture]
    if diff and len(captures) != 2:
        raise ConfigError(f"a comparison needs two captures, the old one first; got {len(captures)}")
    findings = pool([document for document in documents if not (diff and document is captures[0])])
    places = Places(_files_in(documents))
    sections = list(_sections(documents, findings, places, diff))
    body = [
        header(title, documents, findings, [(identity, name) for identity, name, _ in sections]),
        element(
            "main",
            [element("section", element("h2", name), content, id=identity) for identity, name, content in sections],
        ),
        _part("marks.svg"),
        element("div", id="tip", role="tooltip", hidden=""),
        element("script", _part("page.js")),
    ]
    return f"<!DOCTYPE html>\n{_document(title, body)}\n"


def _document(title: str, body: Sequence[Markup]) -> Markup:
    colours = "".join(f"--r{number}:{colour};" for number, colour in enumerate(scale()))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} – ostinato graph"),
        element("style", Markup(f":root{{{colours}}}\n"), _part("page.css")),
        element("script", _part("theme.js")),
    )
    return element("html", head, element("body", body), lang="en")


def _sections(documents: Sequence[Document], findings: Sequence[Data], places: Places, diff: bool) -> Iterator[Section]:
    if any(document.record is None for document in documents):
        yield "findings", "Findings", finding_section(findings, documents, places)
    captures = [document for document in documents if document.is_capture]
    if diff:
        yield "diff", "What changed", diff_section(captures[0], captures[1], findings, places, "changes")
    for number, document in enumerate(captures):
        if not diff:
            yield from _capture(document, findings, places, number, f": {document.name}" if len(captures) > 1 else "")
    for number, document in enumerate(captures):
        of = f": {document.name}" if len(captures) > 1 else ""
        yield f"memory-{number}", f"Memory{of}", memory_section(document.graphs, places, f"m{number}")
    for number, document in enumerate(documents):
        match document.record:
            case Sizes():
                yield f"sizes-{number}", "Batch sizes", sizes_section(document.record, f"s{number}")
            case Timeline():
                yield f"timeline-{number}", "Timeline", timeline_section(document.record, f"t{number}")
            case Startup():
                yield f"startup-{number}", "Start-up", startup_section(document.record)
    yield "about", "About", documents_table(documents)


def _capture(document: Document, findings: Sequence[Data], places: Places, number: int, of: str) -> Iterator[Section]:
    """The sizes against each other, then the picture and the tables."""
    graphs, environment = document.graphs, document.data["environment"]
    steps = [step_of_graph(size, graph, environment, findings) for size, graph in graphs.items()]
    yield f"matrix-{number}", f"By batch size{of}", [heat_table(steps, list(graphs.values()))]
    identity, strings = f"g{number}", Strings()
    tables = step_tables(steps, list(graphs.values()), findings, places, strings, identity)
    title = f"{document.data['target']}: the step as lanes of modules, operators and graph nodes"
    yield f"step-{number}", f"The step{of}", [step_figure(steps, findings, places, strings, identity, title), *tables]


def _files_in(documents: Sequence[Document]) -> Iterator[str]:
    for document in documents:
        yield from (finding["file"] for finding in document.findings if finding["file"])
        for graph in document.graphs.values() if document.is_capture else ():
            yield from (op["file"] for op in graph["ops"] if op["file"])
            yield from (entry["file"] for entry in graph["memory"]["by_line"] if entry["file"])


def _part(name: str) -> Markup:
    """A file of this package, as it goes into the page."""
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8"))
