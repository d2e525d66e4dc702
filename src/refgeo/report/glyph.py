"""A claim's interval against its margin as a tiny drawing, laid out here and drawn as SVG by the template."""

from __future__ import annotations

from dataclasses import dataclass

from refgeo.report.compare import has_interval
from refgeo.report.rules import Part

WIDTH = 200.0
INSET = 10.0


@dataclass(frozen=True)
class Glyph:
    """Horizontal places in [0, ``WIDTH``]: the interval, the estimate, the margins, and the side that supports the claim."""

    low: float
    high: float
    value: float
    margins: tuple[float, ...]
    support: tuple[float, float]


def glyph(part: Part | None) -> Glyph | None:
    """The drawing of a part; None without an interval."""
    if part is None or not has_interval(part.estimate):
        return None
    margins = (part.margin, part.upper) if part.relation == "within" else (part.margin,)
    values = (part.estimate.low, part.estimate.high, part.estimate.value, *margins)
    left, right = min(values), max(values)
    pad = 0.12 * (right - left) or 1.0

    def place(value: float) -> float:
        share: float = (value - left + pad) / (right - left + 2 * pad)
        return INSET + share * (WIDTH - 2 * INSET)

    marks = tuple(place(margin) for margin in margins)
    support = (marks[0], WIDTH) if part.relation == "above" else (0.0, marks[0]) if part.relation == "below" else (marks[0], marks[-1])
    return Glyph(place(part.estimate.low), place(part.estimate.high), place(part.estimate.value), marks, support)
