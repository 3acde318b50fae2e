"""The scale of the roofline: ten colours of even steps in lightness, so that more is lighter also in grey and in print.

Made in OKLCH (Björn Ottosson, "A perceptual color space for image processing", 2020) and written as sRGB, from violet
(slow) through teal to yellow (at the roofline): blue and yellow ends can be told apart by colour-blind readers.
"""

from __future__ import annotations

import math

STEPS = 10
_LIGHTNESS = (0.40, 0.90)
_HUE = (305.0, 100.0)
_CHROMA = (0.15, 0.12, 0.16)
"""At the ends and in the middle: teal holds less colour than violet in sRGB."""


def scale() -> list[str]:
    """Return ``STEPS`` colours as ``#rrggbb``, darkest first."""
    return [_colour(step / (STEPS - 1)) for step in range(STEPS)]


def step_of(share: float) -> int:
    """Which of the ``STEPS`` a share of the roofline (0 … 1, or more by error of measurement) falls into."""
    return min(STEPS - 1, max(0, int(share * STEPS)))


def _colour(at: float) -> str:
    lightness = _between(_LIGHTNESS[0], _LIGHTNESS[1], at)
    first, middle, last = _CHROMA
    chroma = _between(first, middle, at * 2) if at < 0.5 else _between(middle, last, at * 2 - 1)
    hue = math.radians(_between(_HUE[0], _HUE[1], at))
    return "#" + "".join(f"{_byte(value):02x}" for value in _linear_rgb(lightness, chroma, hue))


def _linear_rgb(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCH to linear sRGB, with the matrices of the article."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )


def _byte(linear: float) -> int:
    value = min(1.0, max(0.0, linear))
    encoded = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    return round(encoded * 255)


def _between(low: float, high: float, at: float) -> float:
    return low + (high - low) * at
