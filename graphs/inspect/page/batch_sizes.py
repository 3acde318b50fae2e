"""Which batch sizes to capture: how often each came, which sizes have graphs now and should, what one more brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ostinato.graphs.inspect.page.documents import Point, Sizes
from ostinato.graphs.inspect.page.markup import Markup, element, number, number_head, table
from ostinato.graphs.inspect.page.quantities import bytes_text, percent_text, plural

_BARS, _LANE, _CURVE = 130, 22, 150
_APART = 6.0
"""Percent of the width between two labels."""


def sizes_section(sizes: Sizes, identity: str) -> list[Markup]:
    """Return the sentence, the histogram, the curve and its table."""
    if not sizes.histogram:
        return [element("p", "The histogram is empty: no steps were counted.", class_="empty")]
    return [
        element("p", _sentence(sizes)),
        element(
            "div",
            element("figure", element("h3", "steps by batch size"), _histogram(sizes, identity), _legend(sizes)),
            element(
                "figure", element("h3", "padding by number of graphs"), _curve(sizes, identity), _curve_legend(sizes)
            )
            if sizes.curve
            else None,
            class_="pair",
        ),
        _table(sizes.curve) if sizes.curve else element("p", "No curve in this file.", class_="empty"),
    ]


def _sentence(sizes: Sizes) -> str:
    now = ""
    if sizes.current is not None and sizes.wasted_now is not None:
        graphs = plural(len(sizes.current), "graph")
        now = f"{percent_text(sizes.wasted_now)} of the computed rows are padding now ({graphs}); "
    best = ", ".join(map(str, sizes.best))
    return f"{now}{percent_text(sizes.wasted_best)} with {plural(len(sizes.best), 'graph')} of sizes {best}."


def _histogram(sizes: Sizes, identity: str) -> Markup:
    counts = {int(size): count for size, count in sizes.histogram.items()}
    last = max(*counts, *sizes.best, *(sizes.current or ()), 1)
    lanes = [("best", sizes.best)] if sizes.current is None else [("now", sizes.current), ("best", sizes.best)]
    return element(
        "svg",
        element("title", "steps by batch size, with the sizes that have graphs", id=f"{identity}-histogram"),
        element("desc", "; ".join(f"{name}: {', '.join(map(str, marked))}" for name, marked in lanes)),
        list(_bars(counts, last)),
        element("line", x1="0", x2="100%", y1=_BARS, y2=_BARS, class_="axis"),
        [
            element(
                "svg",
                list(_marks(name, marked, last)),
                y=_BARS + 2 + at * _LANE,
                height=_LANE,
                width="100%",
                class_="open",
            )
            for at, (name, marked) in enumerate(lanes)
        ],
        list(_labels(sorted({*sizes.best, *(sizes.current or ())}), last, _BARS + 2 + len(lanes) * _LANE + 12)),
        xmlns="http://www.w3.org/2000/svg",
        class_="histogram",
        width="100%",
        height=_BARS + len(lanes) * _LANE + 20,
        role="img",
        aria_labelledby=f"{identity}-histogram",
    )


def _bars(counts: dict[int, int], last: int) -> Iterator[Markup]:
    most = max(counts.values()) or 1
    for size, count in sorted(counts.items()):
        height = max(_BARS * 0.92 * count / most, 1.0 if count else 0.0)
        yield element(
            "rect",
            element("title", f"batch size {size}: {plural(count, 'step')}"),
            x=f"{100 * (size - 1) / last:.3f}%",
            width=f"{85 / last:.3f}%",
            y=f"{_BARS - height:.1f}",
            height=f"{height:.1f}",
            class_="count",
        )


def _marks(name: str, marked: Sequence[int], last: int) -> Iterator[Markup]:
    """A line from the bars to a circle (now) or a diamond (proposed) for each size."""
    for size in marked:
        x = f"{100 * (size - 0.5) / last:.3f}%"
        yield element(
            "use", element("title", f"{name}: {size}"), href=f"#size-{name}", x=x, y=11, class_=f"size-{name}"
        )


def _labels(marked: Sequence[int], last: int, y: int) -> Iterator[Markup]:
    """Sizes under their marks, from the largest down, as far as they fit."""
    free = 200.0
    for size in reversed(marked):
        x = 100 * (size - 0.5) / last
        if free - x >= _APART:
            anchor = "end" if x > 97 else "start" if x < 2 else "middle"
            yield element("text", size, x=f"{x:.2f}%", y=y, text_anchor=anchor, class_="caption")
            free = x


def _legend(sizes: Sizes) -> Markup:
    now = element("span", element("span", "●", class_="size-now"), " has a graph now", class_="key")
    best = element("span", element("span", "◆", class_="size-best"), " proposed", class_="key")
    return element("figcaption", [now, best] if sizes.current is not None else best, class_="legend")


def _curve(sizes: Sizes, identity: str) -> Markup:
    points = sorted(sizes.curve, key=lambda point: point.graphs)
    now = (len(sizes.current), sizes.wasted_now) if sizes.current and sizes.wasted_now is not None else None
    most = max([point.wasted for point in points] + ([now[1]] if now else [])) or 1.0
    last = max(points[-1].graphs, now[0] if now else 1, 2)

    def x(graphs: int) -> str:
        return f"{2 + 96 * (graphs - 1) / (last - 1):.3f}%"

    def y(wasted: float) -> str:
        return f"{10 + (_CURVE - 20) * (1 - wasted / most):.1f}"

    lines = [
        element("line", x1=x(a.graphs), y1=y(a.wasted), x2=x(b.graphs), y2=y(b.wasted), class_="curve")
        for a, b in pairwise(points)
    ]
    return element(
        "svg",
        element("title", "share of padding by number of graphs", id=f"{identity}-curve"),
        element("desc", f"from {percent_text(points[0].wasted)} to {percent_text(points[-1].wasted)}"),
        element("line", x1="0", x2="100%", y1=y(0), y2=y(0), class_="axis"),
        lines,
        [_point(point, x(point.graphs), y(point.wasted), len(sizes.best)) for point in points],
        element("use", element("title", f"now: {percent_text(now[1])}"), href="#size-now", x=x(now[0]), y=y(now[1]),
                class_="size-now") if now else None,
        element("text", percent_text(points[0].wasted), x="5%", y=y(points[0].wasted), dy=4, class_="caption halo"),
        element("text", plural(points[0].graphs, "graph"), x=0, y=_CURVE + 8, class_="caption"),
        element("text", plural(last, "graph"), x="100%", y=_CURVE + 8, text_anchor="end", class_="caption"),
        xmlns="http://www.w3.org/2000/svg",
        class_="curve",
        width="100%",
        height=_CURVE + 14,
        role="img",
        aria_labelledby=f"{identity}-curve",
    )  # fmt: skip


def _point(point: Point, x: str, y: str, chosen: int) -> Markup:
    text = f"{plural(point.graphs, 'graph')}: {percent_text(point.wasted)} padding"
    if point.bytes is not None:
        text += f", {bytes_text(point.bytes)}"
    if point.graphs == chosen:
        return element("use", element("title", text), href="#size-best", x=x, y=y, class_="size-best")
    return element("circle", element("title", text), cx=x, cy=y, r=3, class_="point")


def _curve_legend(sizes: Sizes) -> Markup:
    best = element("span", element("span", "◆", class_="size-best"), " proposed", class_="key")
    now = element("span", element("span", "●", class_="size-now"), " now", class_="key")
    return element("figcaption", [now, best] if sizes.current else best, class_="legend")


def _table(curve: Sequence[Point]) -> Markup:
    rows: list[Markup] = []
    before: float | None = None
    for point in sorted(curve, key=lambda point: point.graphs):
        gain = None if before is None else before - point.wasted
        rows.append(
            element(
                "tr",
                element("th", point.graphs, scope="row", class_="number"),
                element("td", ", ".join(map(str, point.sizes))),
                number(percent_text(point.wasted)),
                number("" if gain is None else f"−{percent_text(gain)}"),
                number(bytes_text(point.bytes)),
            )
        )
        before = point.wasted
    head = [*number_head("graphs"), "sizes", *number_head("padding", "gain of one more", "bytes")]
    return element("details", element("summary", "what each further graph brings"), table(head, rows))
