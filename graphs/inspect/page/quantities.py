"""Numbers as people read them: bytes, seconds, shares, counts. None is a dash."""

from __future__ import annotations

DASH = "–"


def bytes_text(count: float | None) -> str:
    """1536 -> "1.5 KiB"; exact below 1 KiB."""
    if count is None:
        return DASH
    size = abs(count)
    if size < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size, count = size / 1024, count / 1024
        if size < 1000 or unit == "TiB":
            break
    return f"{_three_digits(count)} {unit}"


def seconds_text(seconds: float | None) -> str:
    """0.00125 -> "1.25 ms"."""
    if seconds is None:
        return DASH
    size = abs(seconds)
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if size >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return "0 s" if seconds == 0 else f"{_three_digits(seconds / 1e-9)} ns"


def percent_text(share: float | None) -> str:
    """0.286 -> "28.6 %"; whole numbers from 100 % on."""
    if share is None:
        return DASH
    return f"{share * 100:.0f} %" if abs(share) >= 0.9995 else f"{share * 100:.1f} %"


def count_text(count: float | None) -> str:
    """12345 -> "12,345"."""
    return DASH if count is None else f"{count:,.0f}"


def signed(text: str, value: float) -> str:
    """Put + or − before the text of a difference."""
    bare = text.lstrip("-")
    return f"+{bare}" if value > 0 else f"−{bare}" if value < 0 else "±0"


def plural(count: int, noun: str) -> str:
    """(1, "error") -> "1 error"."""
    return f"{count_text(count)} {noun}{'' if count == 1 else 's'}"


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
