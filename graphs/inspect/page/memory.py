"""What the graphs of each size hold: bars of own, shared, exec and external bytes, and the lines that allocate.

What the capture made and what it only reads (weights, state) have scales of their own: weights would hide the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostinato.graphs.inspect.page.markup import Child, Markup, element, number, number_head, table
from ostinato.graphs.inspect.page.places import Places
from ostinato.graphs.inspect.page.quantities import bytes_text, plural
from ostinato.graphs.inspect.page.steps import Data

PARTS = {
    "own": "added to the pool by this graph",
    "shared": "found in the pool",
    "exec": "of the instantiated graph",
    "external": "weights, state and inputs: read, not made",
}
_MADE = ("own", "shared", "exec")
_ROW = 26
_BAR = 14
_LINES = 15


def memory_section(graphs: Mapping[int, Data], places: Places, identity: str) -> list[Markup]:
    """Return the bars and the table by line."""
    memory = {size: graph["memory"] for size, graph in graphs.items()}
    return [
        element(
            "div",
            _bars(memory, _MADE, "made by the capture", f"{identity}-made"),
            _bars(memory, ("external",), "read from outside", f"{identity}-external"),
            class_="pair",
        ),
        *_line_table(memory, places),
    ]


def _bars(memory: Mapping[int, Data], parts: Sequence[str], title: str, identity: str) -> Markup:
    totals = {size: sum(_bytes(each, part) for part in parts) for size, each in memory.items()}
    most = max(totals.values(), default=0) or 1
    rows = [_bar_row(number_, size, memory[size], parts, totals[size], most) for number_, size in enumerate(totals)]
    picture = element(
        "svg",
        element("title", f"memory {title}", id=f"{identity}-title"),
        element("desc", "; ".join(f"batch size {size}: {bytes_text(total)}" for size, total in totals.items())),
        rows,
        xmlns="http://www.w3.org/2000/svg",
        class_="bars",
        width="100%",
        height=_ROW * len(totals),
        role="img",
        aria_labelledby=f"{identity}-title",
    )
    return element(
        "figure", element("h3", title), picture, element("figcaption", _keys(memory, parts), class_="legend")
    )


def _bar_row(at: int, size: int, memory: Data, parts: Sequence[str], total: float, most: float) -> Markup:
    """One bar: the label of the size at the left, the total after the bar; 62 % of the width is the scale."""
    left, children = 0.0, []
    for part in parts:
        width = 100 * _bytes(memory, part) / most
        if width:
            text = f"batch size {size}, {part}: {bytes_text(_bytes(memory, part))}"
            children.append(
                element(
                    "rect",
                    element("title", text),
                    x=f"{left:.2f}%",
                    width=f"{width:.2f}%",
                    height=_BAR,
                    class_=f"m-{part}",
                )
            )
            left += width
    y = at * _ROW
    return element(
        "g",
        element("text", size, x="8%", y=y + 16, text_anchor="end"),
        element("svg", children, x="10%", y=y + 5, width="62%", height=_BAR),
        element("text", bytes_text(total), x=f"{11 + 0.62 * left:.2f}%", y=y + 16, class_="caption"),
    )


def _keys(memory: Mapping[int, Data], parts: Sequence[str]) -> list[Child]:
    keys: list[Child] = [
        element("span", element("span", class_=f"swatch m-{part}"), f" {part}: {PARTS[part]}", class_="key")
        for part in parts
    ]
    if "exec" in parts and any(each["exec_bytes"] is None for each in memory.values()):
        keys.append(element("span", "exec bytes were not measured (no device)", class_="key"))
    return keys


def _line_table(memory: Mapping[int, Data], places: Places) -> list[Markup]:
    by_line: dict[tuple[str, int], dict[int, float]] = {}
    for size, each in memory.items():
        for entry in each["by_line"]:
            row = by_line.setdefault((entry["file"] or "", entry["line"] or 0), {})
            row[size] = row.get(size, 0) + entry["bytes"]
    if not by_line:
        return [element("p", "No line allocates anything that lives to the peak.", class_="empty")]
    dearest = sorted(by_line.items(), key=lambda item: (-max(item[1].values()), item[0]))
    rows = [
        element(
            "tr",
            element("th", places.link(file or None, line or None), places.code(file, line), scope="row"),
            [number(bytes_text(found[size]) if size in found else "") for size in memory],
        )
        for (file, line), found in dearest[:_LINES]
    ]
    rest = len(dearest) - _LINES
    caption = "bytes alive at the peak, by the line that allocated them and batch size"
    more = [element("p", f"and {plural(rest, 'line')} with less", class_="quiet")] if rest > 0 else []
    return [table(["line", *number_head(*map(str, memory))], rows, caption), *more]


def _bytes(memory: Data, part: str) -> float:
    return float(memory[f"{part}_bytes"] or 0)
