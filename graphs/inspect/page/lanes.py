"""The picture of a step that is in the page before any script runs; ``page.js`` draws the same for other views.

From top to bottom: marks of findings, a lane for each depth of modules, operators, graph nodes, an axis. Sideways it is
measured in percent, upright in pixels, so the picture fits every width and its text keeps its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ostinato.graphs.inspect.page.markup import Child, Markup, element
from ostinato.graphs.inspect.page.quantities import bytes_text, count_text, plural, seconds_text
from ostinato.graphs.inspect.page.steps import Data, Step, component_names

HEIGHTS = {"mark": 14, "block": 23, "caption": 18, "op": 30, "change": 20, "node": 22, "axis": 22}
"""Pixels of each lane; the script reads them from the data."""
CHANGES = {"came": "+", "went": "−", "changed": "~", "same": "="}
_NARROW = 1100
"""Width in pixels that labels are chosen for while no script can measure them."""
_LETTER = 7.0
_QUARTERS = (0, 25, 50, 75, 100)


def marks_of(findings: Sequence[Data], numbers: Sequence[int]) -> tuple[str, ...]:
    """Classes that findings give an operator: "hazard" for errors and warnings, "frozen" for frozen values."""
    serious = any(findings[number]["severity"] != "info" for number in numbers)
    frozen = any(findings[number]["code"] == "frozen-value" for number in numbers)
    return tuple(name for name, is_so in (("hazard", serious), ("frozen", frozen)) if is_so)


def lanes(step: Step, findings: Sequence[Data], metric: str, title: str, identity: str) -> Markup:
    """Return the SVG of ``step`` by ``metric`` ("time" or "bytes")."""
    edges = step.edges(metric)
    y, parts = 0, []
    for height, part in _lanes(step, findings, metric, edges):
        if part is not None:
            parts.append(element("svg", part, y=y, height=height, width="100%", class_=None if y else "open"))
        y += height
    return element(
        "svg",
        element("title", title, id=f"{identity}-title"),
        element("desc", _description(step), id=f"{identity}-desc"),
        parts,
        xmlns="http://www.w3.org/2000/svg",
        class_="lanes",
        width="100%",
        height=y,
        role="img",
        aria_labelledby=f"{identity}-title {identity}-desc",
    )


def _lanes(
    step: Step, findings: Sequence[Data], metric: str, edges: list[float]
) -> Iterator[tuple[int, Markup | list[Markup] | None]]:
    """Yield (height, content) from top to bottom."""
    yield HEIGHTS["mark"], list(_marks(step, findings, edges))
    for depth in range(1 + max((block.depth for block in step.blocks), default=-1)):
        yield HEIGHTS["block"], list(_blocks(step, depth, edges))
    if step.changes:
        yield from _change_lanes(step, findings, edges)
    else:
        yield HEIGHTS["caption"], _caption(plural(len(step.ops), "operator"))
        yield HEIGHTS["op"], list(_ops(step, findings, edges))
    if step.nodes:
        yield HEIGHTS["caption"], _caption(plural(step.nodes, "graph node"))
        yield HEIGHTS["node"], list(_nodes(step, edges))
    yield HEIGHTS["axis"], list(_axis(step, metric))


def _marks(step: Step, findings: Sequence[Data], edges: list[float]) -> Iterator[Markup]:
    for number, (first, _) in enumerate(step.ranges):
        classes = marks_of(findings, step.findings[number])
        if classes:
            x = f"{edges[first]:.3f}%"
            yield element("use", href="#mark", x=x, class_=" ".join(classes), data_o=number)


def _blocks(step: Step, depth: int, edges: list[float]) -> Iterator[Markup]:
    strip = HEIGHTS["block"] - 6
    for number, block in enumerate(step.blocks):
        if block.depth != depth:
            continue
        left, width = edges[block.first], edges[block.last] - edges[block.first]
        label = _label(component_names(block.path)[-1], width)
        yield element(
            "svg",
            element("rect", width="100%", height=HEIGHTS["block"] - 2, class_="block"),
            element("rect", y=strip, width="100%", height=4, class_=block_class(step, block.first, block.last)),
            element("text", label, x=4, y=13) if label else None,
            x=f"{left:.3f}%",
            width=f"{width:.3f}%",
            data_b=number,
        )


def block_class(step: Step, first: int, last: int) -> str:
    """The colour of a module's strip: its mean on the roofline, or what changed in it."""
    if not step.changes:
        return step.colour_of(first, last) if step.by_roofline else "bare"
    ops = [leaf.op for leaf in step.leaves[first:last] if leaf.op is not None]
    kinds = {step.changes[op] for op in ops}
    if kinds == {"same"}:
        return "same"
    return kinds.pop() if len(kinds) == 1 else "changed"


def _ops(step: Step, findings: Sequence[Data], edges: list[float], change: str = "") -> Iterator[Markup]:
    for number, (first, last) in enumerate(step.ranges):
        if change and step.changes[number] != change:
            continue
        colour = change or op_colour(step, number)
        classes = " ".join((colour, *marks_of(findings, step.findings[number])))
        yield _tick(edges[first], edges[last], classes, data_o=number)


def op_colour(step: Step, number: int) -> str:
    """The colour of an operator: that of its one leaf, or of its leaves together."""
    first, last = step.ranges[number]
    alone = last - first == 1 or not step.by_roofline
    return step.leaves[first].colour if alone else step.colour_of(first, last)


def _change_lanes(step: Step, findings: Sequence[Data], edges: list[float]) -> Iterator[tuple[int, list[Markup]]]:
    for change, sign in CHANGES.items():
        count = step.changes.count(change)
        yield HEIGHTS["caption"], [_caption(f"{sign} {change}: {plural(count, 'operator')}")]
        yield HEIGHTS["change"], list(_ops(step, findings, edges, change))


def _nodes(step: Step, edges: list[float]) -> Iterator[Markup]:
    for number, leaf in enumerate(step.leaves):
        if leaf.node is not None:
            yield _tick(edges[number], edges[number + 1], leaf.colour, data_n=number)


def _tick(left: float, right: float, classes: str, **data: int) -> Markup:
    return element("rect", x=f"{left:.3f}%", width=f"{right - left:.3f}%", height="100%", class_=classes, **data)


def _caption(text: str) -> Markup:
    return element("text", text, x=0, y=HEIGHTS["caption"] - 5, class_="caption")


def _axis(step: Step, metric: str) -> Iterator[Markup]:
    total = sum(leaf.seconds if metric == "time" else leaf.bytes for leaf in step.leaves)
    text = seconds_text if metric == "time" else bytes_text
    for at in _QUARTERS:
        yield element("line", x1=f"{at}%", x2=f"{at}%", y1=0, y2=5, class_="axis")
        anchor = "start" if at == 0 else "end" if at == 100 else "middle"
        yield element("text", text(total * at / 100), x=f"{at}%", y=18, text_anchor=anchor, class_="caption")


def _label(name: str, percent: float) -> Child:
    """The longest form of a module's name that fits: "layers.3", "3", or nothing."""
    room = percent / 100 * _NARROW - 6
    forms = (name, name.rpartition(".")[2] if name.rpartition(".")[2].isdecimal() else "")
    return next((form for form in forms if form and len(form) * _LETTER <= room), None)


def _description(step: Step) -> str:
    outer = [block.path for block in step.blocks if block.depth == 0]
    names = ", ".join(outer[:8]) + (" …" if len(outer) > 8 else "")
    return (
        f"Batch size {step.size}: {count_text(len(step.ops))} operators and {count_text(step.nodes)} graph nodes"
        f"{f' in {names}' if names else ''}. The tables below the picture hold the same numbers."
    )
