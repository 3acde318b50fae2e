"""The start-up as a waterfall: a row a phase, coloured by whether a cache had it."""

from __future__ import annotations

from collections.abc import Sequence

from ostinato.graphs.inspect.page.documents import Phase, Startup
from ostinato.graphs.inspect.page.markup import Markup, element, number, number_head, table
from ostinato.graphs.inspect.page.quantities import percent_text, plural, seconds_text

_CACHES = {"hit": "from the cache", "miss": "made anew", "": "never cached"}
_SIGNS = {"hit": "✓ hit", "miss": "✕ miss", "": ""}
_ROWS = 60


def startup_section(startup: Startup) -> list[Markup]:
    """Return the waterfall and the sums by kind of phase."""
    if not startup.phases:
        return [element("p", "No phases were recorded.", class_="empty")]
    longest = sorted(startup.phases, key=lambda phase: -phase.seconds)
    shown, rest = sorted(longest[:_ROWS], key=lambda phase: (phase.start, phase.name)), longest[_ROWS:]
    end = max(startup.seconds, *(phase.start + phase.seconds for phase in startup.phases)) or 1.0
    keys = [
        element("span", element("span", class_=f"swatch c-{cache or 'none'}"), f" {what}", class_="key")
        for cache, what in _CACHES.items()
    ]
    short = f"and {plural(len(rest), 'shorter phase')}, {seconds_text(sum(phase.seconds for phase in rest))} in all"
    return [
        table(
            ["phase", "", "cache", *number_head("took"), "why"],
            [_row(phase, end) for phase in shown],
            f"{seconds_text(startup.seconds)} to the first request",
            class_="waterfall",
        ),
        element("p", keys, class_="legend"),
        *([element("p", short, class_="quiet")] if rest else []),
        _sums(startup.phases, startup.seconds),
    ]


def _row(phase: Phase, end: float) -> Markup:
    cache = phase.cache or ""
    size = element("span", f", size {phase.batch_size}", class_="quiet") if phase.batch_size else None
    left, width = 100 * phase.start / end, 100 * phase.seconds / end
    bar = element(
        "svg",
        element("title", f"{phase.name}: {seconds_text(phase.start)} to {seconds_text(phase.start + phase.seconds)}"),
        element(
            "rect", x=f"{left:.3f}%", width=f"{max(width, 0.3):.3f}%", height="100%", class_=f"c-{cache or 'none'}"
        ),
        xmlns="http://www.w3.org/2000/svg",
        width="100%",
        height=14,
        role="img",
    )
    return element(
        "tr",
        element("th", phase.name, size, scope="row", class_="nowrap"),
        element("td", bar, class_="track"),
        element("td", _SIGNS.get(cache, cache), class_=f"cache-{cache or 'none'}"),
        number(seconds_text(phase.seconds)),
        element("td", phase.why, class_="quiet"),
    )


def _sums(phases: Sequence[Phase], whole: float) -> Markup:
    by_name: dict[str, list[Phase]] = {}
    for phase in phases:
        by_name.setdefault(phase.name, []).append(phase)
    rows = []
    for name, members in sorted(by_name.items(), key=lambda item: -sum(phase.seconds for phase in item[1])):
        total = sum(phase.seconds for phase in members)
        hits, misses = (sum(phase.cache == kind for phase in members) for kind in ("hit", "miss"))
        share = percent_text(total / whole if whole else None)
        cells = (len(members), hits, misses, seconds_text(total), share)
        rows.append(element("tr", element("th", name, scope="row"), [number(cell) for cell in cells]))
    return table(["kind", *number_head("phases", "hits", "misses", "time", "of the start-up")], rows)
