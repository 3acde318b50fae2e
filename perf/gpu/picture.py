"""A picture of a report: how far each target is met, and the time of one token beside floor and peers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostinato.perf.gpu.report import figures_of
from ostinato.perf.report import shown

INK, FAINT, MET, MISSED, OURS, PEER = "#1f2328", "#656d76", "#2c8a4b", "#c4432b", "#0a6ebd", "#8b93a0"
BARS = {
    "decode.ms_floor": ("floor: read the weights once", MISSED),
    "decode.ms_ostinato": ("ostinato", OURS),
    "decode.ms_plain_graph": ("plain CUDA graph of torch operations", PEER),
    "static_peer.ms_transformers": ("transformers, static cache, compiled", PEER),
    "decode.ms_transformers": ("transformers generate", PEER),
}
NARROWEST, WIDEST = 0.1, 10.0  # of the ratios drawn


def can_draw() -> bool:
    """Whether matplotlib is installed (the extra ``perf``)."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write a PNG (or what the suffix says) for a white page."""
    from matplotlib.figure import Figure

    rows = [row for row in report["targets"] if row["value"] is not None and ratio(row) is not None]
    height = 1.2 + 0.27 * max(len(rows), 5)
    figure = Figure(figsize=(13, height), dpi=130, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    _targets(left, rows)
    _times(right, figures_of(report), lines=max(len(rows), len(BARS)))
    figure.suptitle(f"{report['size']} sizes, random weights, {report['machine']}", color=INK, fontsize=9)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.12)


def ratio(row: Mapping[str, Any]) -> float | None:
    """How well a target is met: 1 exactly, 2 twice as well as asked; None where a quotient says nothing."""
    value, limit = row["value"], row["limit"]
    if value <= 0 or limit <= 0:
        return None
    return float(value / limit if row["bound"] == "at least" else limit / value)


def _targets(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    """A bar from 1, to the right where a target is met; the axis is logarithmic and ends at ten times."""
    for place, row in enumerate(reversed(rows)):
        width = min(max(ratio(row) or 1.0, NARROWEST), WIDEST)
        axes.barh(place, width - 1, left=1, height=0.6, color=MET if row["verdict"] == "met" else MISSED)
        sign = "≥" if row["bound"] == "at least" else "≤"
        text = f"{shown(row['value'])} {row['unit']}  ({sign} {shown(row['limit'])})"
        axes.annotate(text, (WIDEST * 1.1, place), va="center", fontsize=7.5, color=INK, annotation_clip=False)
    labels = [f"{row['what']}  [{row['id']}{'' if row['asked'] == 'now' else ', later'}]" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
    axes.set_xscale("log")
    axes.set_xlim(NARROWEST, WIDEST)
    axes.set_xticks([0.1, 0.5, 1, 2, 10], ["0.1", "0.5", "1 = target", "2", "10"], fontsize=8)
    axes.minorticks_off()
    axes.axvline(1, color=INK, lw=1)
    axes.set_title("targets: how far each is met", loc="left", color=INK, fontsize=10)
    _style(axes)


def _times(axes: Any, figures: Mapping[str, float], lines: int) -> None:
    """Milliseconds of a token at batch 1; bars as high as those of ``lines`` targets beside them."""
    bars = [(label, colour, figures[name]) for name, (label, colour) in BARS.items() if name in figures]
    for place, (_, colour, value) in enumerate(reversed(bars)):
        axes.barh(place, value, height=0.6, color=colour)
        axes.annotate(
            f"{shown(value)} ms", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(bars)), [label for label, _, _ in reversed(bars)], fontsize=8)
    axes.set_ylim(len(bars) - 0.5 - lines, len(bars) - 0.5)
    axes.set_xlim(0, 1.25 * max([value for _, _, value in bars], default=1.0))
    axes.set_title("one token, batch 1, 128-token prompt", loc="left", color=INK, fontsize=10)
    _style(axes)


def _style(axes: Any) -> None:
    axes.tick_params(length=0, colors=FAINT)
    axes.tick_params(axis="y", colors=INK)
    axes.xaxis.grid(color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
