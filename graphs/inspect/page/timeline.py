"""The steps of a run: a column a step, the host's parts above the line, the device's idle time below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ostinato.graphs.inspect.page.documents import Timeline, TimelineStep
from ostinato.graphs.inspect.page.markup import Markup, element, number, number_head, table
from ostinato.graphs.inspect.page.quantities import percent_text, plural, seconds_text

PARTS = {
    "prepare": "scheduling and packing",
    "launch": "handing the step to the device",
    "sample": "what the host does with tokens",
    "wait": "the host waits for the device",
    "gap": "the device waits for the host, between two replays",
}
_HOST = ("prepare", "launch", "sample", "wait")
_COLUMNS = 240
_TOP, _UP, _DOWN, _AXIS = 16, 150, 60, 20
_ZERO = _TOP + _UP


@dataclass(frozen=True)
class Column:
    """One step, or the mean of several that follow each other."""

    first: int
    last: int
    batch_size: str
    parts: dict[str, float]
    """Seconds."""


def timeline_section(timeline: Timeline, identity: str) -> list[Markup]:
    """Return the picture and a table of the parts."""
    steps = timeline.steps
    if not steps:
        return [element("p", "No steps were recorded.", class_="empty")]
    columns = columns_of(steps)
    each = -(-len(steps) // len(columns))
    note = f"a column is the mean of up to {each} steps" if each > 1 else "a column is a step"
    keys = [
        element("span", element("span", class_=f"swatch t-{part}"), f" {part}: {what}", class_="key")
        for part, what in PARTS.items()
    ]
    return [
        element(
            "figure",
            _picture(columns, len(steps), identity),
            element("figcaption", keys, element("span", note, class_="key"), class_="legend"),
        ),
        _table(steps),
    ]


def columns_of(steps: Sequence[TimelineStep]) -> list[Column]:
    """At most ``_COLUMNS`` columns, each of as many steps as the others but the last."""
    each = -(-len(steps) // _COLUMNS)
    groups = [(at, steps[at : at + each]) for at in range(0, len(steps), each)]
    return [
        Column(
            at,
            at + len(group) - 1,
            ", ".join(map(str, sorted({step.batch_size for step in group if step.batch_size is not None})))
            or "unknown",
            {part: sum(getattr(step, part) for step in group) / len(group) for part in PARTS},
        )
        for at, group in groups
    ]


def _picture(columns: Sequence[Column], steps: int, identity: str) -> Markup:
    most = max(sum(column.parts[part] for part in _HOST) for column in columns) or 1.0
    widest_gap = max(column.parts["gap"] for column in columns)
    scale = min(_UP / most, (_DOWN - _TOP) / widest_gap if widest_gap else _UP / most)
    return element(
        "svg",
        element("title", f"{plural(steps, 'step')} by what the host and the device did", id=f"{identity}-title"),
        element(
            "desc", f"The host took up to {seconds_text(most)} a step, the longest gap {seconds_text(widest_gap)}."
        ),
        [_column(column, at, len(columns), scale) for at, column in enumerate(columns)],
        list(_rules(scale, most, widest_gap)),
        element("line", x1="0", x2="100%", y1=_ZERO, y2=_ZERO, class_="axis"),
        element("text", "step 0", x=0, y=_ZERO + _DOWN + 15, class_="caption"),
        element("text", f"step {steps - 1}", x="100%", y=_ZERO + _DOWN + 15, class_="caption", text_anchor="end"),
        xmlns="http://www.w3.org/2000/svg",
        class_="timeline",
        width="100%",
        height=_ZERO + _DOWN + _AXIS,
        role="img",
        aria_labelledby=f"{identity}-title",
    )


def _column(column: Column, at: int, count: int, scale: float) -> Markup:
    width = 100 / count
    place = {"x": f"{at * width:.3f}%", "width": f"{width * 0.86:.3f}%"}
    top, bars = float(_ZERO), []
    for part in _HOST:
        height = column.parts[part] * scale
        top -= height
        bars.append(element("rect", **place, y=f"{top:.2f}", height=f"{height:.2f}", class_=f"t-{part}"))
    gap = column.parts["gap"] * scale
    bars.append(element("rect", **place, y=_ZERO, height=f"{gap:.2f}", class_="t-gap"))
    numbers = ", ".join(f"{part} {seconds_text(seconds)}" for part, seconds in column.parts.items())
    name = f"step {column.first}" if column.first == column.last else f"steps {column.first} to {column.last}"
    return element("g", element("title", f"{name}, batch size {column.batch_size}: {numbers}"), bars)


def _rules(scale: float, most: float, widest_gap: float) -> Iterator[Markup]:
    """Lines at the longest step and the longest gap, with their times."""
    for y, text_y, seconds, what in (
        (_ZERO - most * scale, _ZERO - most * scale - 4, most, "longest on the host"),
        (_ZERO + widest_gap * scale, _ZERO + widest_gap * scale + 13, widest_gap, "longest gap"),
    ):
        if seconds:
            yield element("line", x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="rule")
            text = f"{what} {seconds_text(seconds)}"
            yield element("text", text, x="100%", y=f"{text_y:.1f}", class_="caption", text_anchor="end")


def _table(steps: Sequence[TimelineStep]) -> Markup:
    host = sum(getattr(step, part) for part in _HOST for step in steps)
    rows = [_row(part, sorted(getattr(step, part) for step in steps), host) for part in PARTS]
    return table(["part", *number_head("total", "of the host's time", "mean", "median", "99 %", "longest")], rows)


def _row(part: str, ordered: Sequence[float], host: float) -> Markup:
    total = sum(ordered)
    near_all = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    times = (total / len(ordered), ordered[len(ordered) // 2], near_all, ordered[-1])
    share = percent_text(total / host) if host and part in _HOST else ""
    return element(
        "tr",
        element("th", element("span", class_=f"swatch t-{part}"), f" {part}", scope="row", class_="nowrap"),
        number(seconds_text(total)),
        number(share),
        [number(seconds_text(time)) for time in times],
    )
