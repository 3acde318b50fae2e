"""Plain tables that fit a terminal of 100 columns, and numbers with units as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100
_GAP = "  "
_LEAST = 12


def table(header: Sequence[str], rows: Sequence[Sequence[str]], flexible: Sequence[int] = (0,)) -> str:
    """Columns under a header; ``flexible`` ones hold text, are aligned left and give way until the rest fits."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > WIDTH:
        widest = max(flexible, key=lambda column: widths[column])
        if widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
    lines = [_line(row, widths, flexible) for row in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int], flexible: Sequence[int]) -> str:
    parts = []
    for column, (text, width) in enumerate(zip(row, widths, strict=True)):
        parts.append(shortened(text, width).ljust(width) if column in flexible else text.rjust(width))
    return _GAP.join(parts).rstrip()


def shortened(text: str, width: int) -> str:
    """``text``, with its middle left out if it is longer: both ends of a name tell something."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def bytes_text(count: int | None) -> str:
    """``1.5 MiB``."""
    if count is None:
        return "-"
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1024:
            return f"{value:.3g} {unit}" if abs(value) < 1000 else f"{value:.0f} {unit}"
    return f"{value / 1024:.3g} TiB"


def seconds_text(seconds: float | None) -> str:
    """``12.3 µs``, ``4.56 ms``."""
    if seconds is None:
        return "-"
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"


def share_text(share: float | None) -> str:
    """``12 %``; ``-`` where nothing is known."""
    return "-" if share is None else f"{share * 100:.0f} %"
