"""``ostinato graph sizes``: a histogram file in, advice out, as data and as text. Knows no torch.

A histogram file is JSON as ``llm.stats()`` exports it (``json.dumps(llm.stats().as_dict())``), or plain JSON
``{"3": 120}``, or CSV with the columns rows and steps. A bad one is refused with the line or field.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ostinato.graphs.inspect.capturing.ograph import OGraph
from ostinato.graphs.inspect.json_file import read_text
from ostinato.graphs.inspect.numbers.sizes import ASSUMED_BYTES, PAYS, advise
from ostinato.layers.errors import ConfigError

_UNITS = {"": 1, "b": 1} | {f"{p}{i}b": (1024 if i else 1000) ** n for n, p in enumerate("kmgt", 1) for i in ("i", "")}
_SHOWN = 32  # rows of the table


class Traffic(NamedTuple):
    """Decode steps by batch size, and the sizes that had a graph where the file says so."""

    histogram: dict[int, int]
    current: tuple[int, ...] | None


def advise_files(
    histogram: str | Path,
    max_graphs: int,
    *,
    memory_limit: int | str | None = None,
    cost: str | Path | None = None,
    current: Sequence[int] | None = None,
) -> dict[str, Any]:
    """``advise`` on files: ``cost`` is a saved capture, which gives the seconds and bytes of the sizes in it.

    ``current``: the sizes captured now, where the histogram's file does not say so, or is wrong about it.
    """
    traffic = read_traffic(histogram)
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    seconds, size_bytes = (None, None) if cost is None else _measured(cost)
    of_engine = {} if traffic.current is None else {max(traffic.current): 0}  # an engine always captures its largest
    return advise(
        of_engine | traffic.histogram,
        max_graphs,
        current=traffic.current if current is None else current,
        cost=seconds,
        memory_limit=limit,
        bytes_of=size_bytes,
    )


def read_traffic(path: str | Path) -> Traffic:
    """Read a histogram file; ``ConfigError`` names the line or field that is wrong."""
    text = read_text(path)
    if not text.lstrip().startswith(("{", "[")):
        return Traffic(_from_csv(text, path), None)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(data, dict):
        raise ConfigError(f'{path}: expected an object, as in {{"3": 120}}, got {type(data).__name__}')
    field = next((name for name in ("batch_histogram", "histogram") if name in data), None)
    plain = data if field is None else data[field]
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: {field}: expected an object, got {type(plain).__name__}")
    if field is None and not all(re.fullmatch(r"\s*\d+\s*", key) for key in plain):
        raise ConfigError(f"{path}: no field batch_histogram (what llm.stats() exports), and no plain histogram")
    where = f"{path}: {field or 'histogram'}"
    histogram = {_integer(rows, f"{where}: batch size"): _integer(n, f"{where}[{rows!r}]") for rows, n in plain.items()}
    return Traffic(histogram, _sizes(data, path) if field else None)


def parse_bytes(value: int | str) -> int:
    """Bytes from an integer, or a number with a unit: "2GiB", "500 MB"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise ConfigError(f"memory limit: expected bytes, as an integer or like '2GiB' or '500MB', got {value!r}")
    return int(float(match[1]) * unit)


def _from_csv(text: str, path: str | Path) -> dict[int, int]:
    histogram: dict[int, int] = {}
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[:2] == ["rows", "steps"]):
            continue
        where = f"{path}: line {number}"
        if len(cells) != 2:
            raise ConfigError(f"{where}: expected rows,steps, got {','.join(row)!r}")
        rows, steps = (_integer(cell, where) for cell in cells)
        histogram[rows] = histogram.get(rows, 0) + steps
    return histogram


def _integer(value: object, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        return int(value)
    raise ConfigError(f"{where}: expected an integer from 0 up, got {value!r}")


def _sizes(data: Mapping[str, Any], path: str | Path) -> tuple[int, ...] | None:
    """The sizes that the engine had captured (``capture_sizes``); None where there is no such field, or none were."""
    given = data.get("capture_sizes")
    if given is None:
        return None
    if not isinstance(given, list):
        raise ConfigError(f"{path}: capture_sizes: expected a list, got {type(given).__name__}")
    return tuple(_integer(size, f"{path}: capture_sizes") for size in given) or None


def _measured(path: str | Path) -> tuple[dict[int, float], dict[int, float] | None]:
    """Seconds and bytes by size; no bytes where no graph was instantiated to measure them."""
    graphs = OGraph.load(path).graphs
    seconds = {size: graph.replay_seconds for size, graph in graphs.items() if graph.replay_seconds is not None}
    if not seconds:
        raise ConfigError(f"{path}: no graph in it has replay_seconds: nothing was measured")
    captured = {size: graph.memory for size, graph in graphs.items() if graph.memory.exec_bytes is not None}
    held = {size: float(memory.own_bytes + (memory.exec_bytes or 0)) for size, memory in captured.items()}
    return seconds, held or None


def sizes_text(result: Mapping[str, Any]) -> str:
    """The advice as text, at most 100 columns."""
    counts = {int(rows): count for rows, count in result["histogram"].items()}
    steps = sum(counts.values())
    used = [rows for rows, count in counts.items() if count]
    lines = [f"{steps:,} decode steps of {min(used)} to {max(used)} rows, {_mean(counts):.1f} on average", ""]
    lines += _line("now", result["current"], result["wasted_now"])
    lines += _line("best", result["best"], result["wasted_best"])
    if result["steps_without_graph_now"]:
        lines.append(f"{result['steps_without_graph_now']:,} steps have more rows than the largest graph now")
    lines += ["", *_table(result), ""]
    lines.append(f"A graph beyond {result['pays_up_to']} saves less than {PAYS:.0%} of what the steps cost.")
    if result["bytes_are"] == "assumed":
        lines.append(
            f"Bytes are assumed, {_bytes_text(ASSUMED_BYTES)} a graph: --cost RUN.ograph brings measured ones."
        )
    lines.append(f"capture_sizes={result['best']}")
    return "\n".join(part for line in lines for part in _wrapped(line))


def _mean(counts: Mapping[int, int]) -> float:
    return sum(rows * count for rows, count in counts.items()) / sum(counts.values())


def _line(name: str, sizes: list[int], share: float | None) -> list[str]:
    padding = "no step had a graph" if share is None else f"{share:6.1%} of the computed rows are padding"
    return [f"{name:<5} {len(sizes):>3} sizes  {padding}", f"      {', '.join(map(str, sizes))}"]


def _table(result: Mapping[str, Any]) -> list[str]:
    """A line for each number of graphs: padding, what the last one saves, bytes."""
    in_rows, limit = result["unit"] == "padded rows", result["memory_limit"]
    lines = [f"{'graphs':>6} {'padding':>8} {'saves, ' + ('rows' if in_rows else 'ms'):>14} {'bytes':>10}"]
    for point in result["curve"][:_SHOWN]:
        gain = "" if point["gain"] is None else f"{point['gain']:,.0f}" if in_rows else f"{point['gain'] * 1e3:,.2f}"
        size = "" if point["bytes"] is None else _bytes_text(point["bytes"])
        mark = "  <- best" if point["sizes"] == result["best"] else ""
        mark = "  over the limit" if limit is not None and point["bytes"] > limit else mark
        lines.append(f"{point['graphs']:>6} {point['wasted']:>8.1%} {gain:>14} {size:>10}{mark}")
    hidden = len(result["curve"]) - _SHOWN
    return [*lines, f"{'…':>6} {hidden} more in the JSON"] if hidden > 0 else lines


def _bytes_text(count: float) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def _wrapped(line: str) -> list[str]:
    """``line`` in pieces of at most 100 columns, broken after commas, later pieces indented as far as the first."""
    if len(line) <= 100:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) or 6)
    pieces, rest = [], line
    while len(rest) > 100 and (cut := rest.rfind(", ", 0, 100)) > len(indent):
        pieces.append(rest[: cut + 1])
        rest = indent + rest[cut + 2 :]
    return [*pieces, rest]
