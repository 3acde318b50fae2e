"""A picture of a report: the time of one token, ours between the floor and transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostinato.perf.report import shown

BARS = {
    "decode.ms_eager": ("transformers generate\n(eager attention)", "#b9bfc8"),
    "decode.ms_sdpa": ("transformers generate\n(default, sdpa)", "#8b93a0"),
    "decode.ms_ostinato": ("ostinato", "#0a6ebd"),
}
FLOOR = "decode.ms_floor"
TOP = len(BARS) - 0.5
INK, FAINT, FLOOR_COLOUR = "#1f2328", "#656d76", "#c4432b"


def can_plot() -> bool:
    """Whether matplotlib is installed (the extra ``perf``)."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


def missing_figures(report: Mapping[str, Any]) -> list[str]:
    """The figures that the picture needs and the report lacks."""
    return sorted({*BARS, FLOOR} - {row["name"] for row in report["figures"]})


def plot_latency(report: Mapping[str, Any], path: Path) -> None:
    """Write a PNG (or what the suffix says) for a white page: bars with their quartiles, the floor as a line."""
    from matplotlib.figure import Figure

    rows = {row["name"]: row for row in report["figures"]}
    figure = Figure(figsize=(8, 2.9), dpi=160, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, name in enumerate(BARS):
        _bar(axes, place, name, rows)
    _floor_line(axes, rows[FLOOR]["value"])
    axes.set_xlim(0, 1.16 * max(rows[name]["high"] for name in BARS))
    _style(axes)
    axes.set_title(_title(report), loc="left", color=INK, fontsize=11, pad=18)
    figure.text(0.01, -0.005, report["machine_label"], color=FAINT, fontsize=7.5, va="top")
    figure.savefig(path, bbox_inches="tight", pad_inches=0.12)


def _bar(axes: Any, place: int, name: str, rows: Mapping[str, Any]) -> None:
    """A bar, its quartiles, and its value beside it."""
    value, low, high = (rows[name][key] for key in ("value", "low", "high"))
    axes.barh(place, value, height=0.62, color=BARS[name][1])
    axes.plot([low, high], [place, place], color=INK, lw=1)
    text = f"{shown(value)} ms"
    if name == "decode.ms_ostinato":
        text += f"  ({shown(value / rows[FLOOR]['value'])}× the floor)"
    axes.annotate(
        text, (max(value, high), place), xytext=(6, 0), textcoords="offset points", va="center", color=INK, fontsize=10
    )


def _floor_line(axes: Any, floor: float) -> None:
    axes.axvline(floor, color=FLOOR_COLOUR, lw=1.4, ls=(0, (4, 2)))
    axes.annotate(
        f"floor: reading the weights once, {shown(floor)} ms",
        (floor, TOP),
        xytext=(4, 2),
        textcoords="offset points",
        va="bottom",
        color=FLOOR_COLOUR,
        fontsize=9,
        annotation_clip=False,
    )


def _style(axes: Any) -> None:
    axes.set_yticks(range(len(BARS)), [label for label, _ in BARS.values()], fontsize=10)
    axes.set_ylim(-0.5, TOP)
    axes.set_xlabel("milliseconds per token; lower is better", color=FAINT, fontsize=9)
    axes.tick_params(axis="x", length=0, colors=FAINT)
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.xaxis.grid(color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _title(report: Mapping[str, Any]) -> str:
    return f"One token, batch 1, 128-token prompt: {report['size']} sizes, bf16"
