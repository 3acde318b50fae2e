"""The section of one capture: controls, the picture, its legend, and the tables of each batch size.

Without a script the page shows the largest size and holds the others' tables folded.
"""

from __future__ import annotations

from collections.abc import Sequence

from ostinato.graphs.inspect.page.colours import STEPS
from ostinato.graphs.inspect.page.lanes import CHANGES, lanes
from ostinato.graphs.inspect.page.markup import Child, Markup, element
from ostinato.graphs.inspect.page.places import Places
from ostinato.graphs.inspect.page.quantities import bytes_text, percent_text, plural, seconds_text
from ostinato.graphs.inspect.page.step_data import Strings, step_script
from ostinato.graphs.inspect.page.step_tables import kernel_table, line_table, total_of
from ostinato.graphs.inspect.page.steps import FAMILIES, Data, Step

_HINT = "click a module to zoom, an operator for its line; arrow keys move, Enter chooses, Esc zooms out"
_CHANGE_WORDS = {"came": "only in the new capture", "went": "only in the old one", "changed": "in both, not alike"}


def step_figure(
    steps: Sequence[Step], findings: Sequence[Data], places: Places, strings: Strings, identity: str, title: str
) -> Markup:
    """Return controls, picture, legend and data of the steps of one capture (or of a comparison)."""
    shown = steps[-1]
    metric = "time" if shown.timed else "bytes"
    return element(
        "figure",
        _controls(steps, shown, metric),
        element("div", class_="crumbs", role="status"),
        element("div", lanes(shown, findings, metric, title, identity), class_="canvas"),
        _legend(steps),
        _undrawn(steps, findings, places),
        element("div", class_="detail", aria_live="polite"),
        step_script(steps, findings, places, strings, identity),
        class_="step",
        id=identity,
    )


def step_tables(
    steps: Sequence[Step],
    graphs: Sequence[Data],
    findings: Sequence[Data],
    places: Places,
    strings: Strings,
    identity: str,
) -> list[Markup]:
    """Return, for each size, its numbers in a sentence and its two tables."""
    return [
        element(
            "details",
            element("summary", f"batch size {step.size}: ", summary_text(step, graph)),
            line_table(step, findings, places, strings, identity),
            kernel_table(step, strings, identity),
            class_="per-size",
            data_of=identity,
            data_size=step.size,
            open="" if step is steps[-1] else None,
        )
        for step, graph in zip(steps, graphs, strict=True)
    ]


def summary_text(step: Step, graph: Data) -> str:
    """Say in one line what a step is: operators, nodes, bytes, times."""
    whole = total_of(step.leaves)
    parts = [plural(len(step.ops), "operator")]
    if step.nodes:
        parts.append(plural(step.nodes, "node"))
    parts.append(f"{bytes_text(whole.bytes)} moved")
    if graph.get("replay_seconds") is not None:
        parts.append(f"replay {seconds_text(graph['replay_seconds'])}")
    if graph.get("eager_seconds") is not None:
        parts.append(f"eager {seconds_text(graph['eager_seconds'])}")
    if whole.share is not None:
        parts.append(f"{percent_text(whole.share)} of the roofline")
    return ", ".join(parts)


def _controls(steps: Sequence[Step], shown: Step, metric: str) -> Markup:
    options = [
        element("option", step.size, value=number, selected="" if step is shown else None)
        for number, step in enumerate(steps)
    ]
    metrics = [name for name in ("time", "bytes") if name == "bytes" or any(step.timed for step in steps)]
    buttons = [
        element("button", name, type="button", data_metric=name, aria_pressed=str(name == metric).lower())
        for name in metrics
    ]
    return element(
        "div",
        element("label", "batch size ", element("select", options, class_="size")),
        element("span", "width: ", element("span", buttons, class_="switch"), role="group", aria_label="width"),
        element("button", "whole step", type="button", class_="out", disabled=""),
        element("span", _HINT, class_="hint"),
        class_="controls script-only",
    )


def _legend(steps: Sequence[Step]) -> Markup:
    parts: list[Child] = []
    if any(step.changes for step in steps):
        parts += [_key(name, f"{CHANGES[name]} {name}: {words}") for name, words in _CHANGE_WORDS.items()]
    elif any(step.by_roofline for step in steps):
        swatches = [element("span", class_=f"swatch r{number}") for number in range(STEPS)]
        scale = element("span", swatches, class_="scale")
        parts.append(element("span", "colour, % of the roofline: 0 ", scale, " 100", class_="key"))
        parts.append(_key("r", "not measured"))
    else:
        parts.append(element("span", "no times in this file; colour is the kind of operator:", class_="key"))
        parts += [_key(f"f-{name}", name) for name in (*FAMILIES, "arithmetic")]
    parts.append(_key("sample hazard", "a finding at this line"))
    parts.append(_key("sample hazard frozen", "a frozen value"))
    parts.append(element("span", "hairlines: operators that move nothing", class_="key"))
    return element("figcaption", parts, class_="legend")


def _undrawn(steps: Sequence[Step], findings: Sequence[Data], places: Places) -> Child:
    """Findings whose lines start no operator themselves, so that none is marked by them."""
    drawn = {number for step in steps for numbers in step.findings for number in numbers}
    missing = [number for number, finding in enumerate(findings) if finding["file"] and number not in drawn]
    if not missing:
        return None
    links = [
        element(
            "a",
            f"{findings[number]['code']} {places.name(findings[number]['file'], findings[number]['line'])}",
            href=f"#f{number}",
        )
        for number in missing
    ]
    return element("p", element("span", "findings at lines where no operator starts:"), links, class_="legend")


def _key(classes: str, text: str) -> Markup:
    return element("span", element("span", class_=f"swatch {classes}"), " ", text, class_="key")
