"""From figures to colours: scales that a drawing shows beside its cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ggufmerge.report.html.drawing import NOTHING

_STEEP = 6.0  # times the median, from which on the largest figure needs a scale of powers
_DEEPEST = 1e3  # from the largest figure to the smallest that has a colour of its own
# parts of matplotlib's colour maps that stand out from a white page and from a black one
_PARTS = {"viridis": (0.1, 0.95), "coolwarm": (0.0, 1.0)}


@dataclass(frozen=True)
class Scale:
    """low, high: the figures at its ends; what lies beyond has the colour of the end.  log: in powers, not in steps.

    colours: a colour map of matplotlib.
    """

    low: float
    high: float
    log: bool = False
    colours: str = "viridis"

    @classmethod
    def of(cls, figures: Iterable[float | None]) -> Scale:
        """For figures from 0 on: even, or in powers where a few are much larger than the others."""
        known = sorted(f for f in figures if f is not None and f > 0)
        if not known:
            return cls(0.0, 1.0)
        top = known[-1]
        if top <= _STEEP * statistics.median(known):
            return cls(0.0, top)
        return cls(max(known[0], top / _DEEPEST), top, log=True)

    @classmethod
    def both_ways(cls, figures: Iterable[float | None]) -> Scale:
        """For cosines: 0 has the colour in the middle."""
        top = max((abs(f) for f in figures if f is not None), default=0.0)
        end = min(1.0, max(0.5, math.ceil(10 * top) / 10))
        return cls(-end, end, colours="coolwarm")

    def colour(self, figure: float | None) -> str:
        """#rrggbb; that of a missing one where there is no figure."""
        return NOTHING if figure is None else self.at(self._place(figure))

    def at(self, place: float) -> str:
        """The colour at a place from 0 to 1."""
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        begin, end = _PARTS[self.colours]
        return str(to_hex(colormaps[self.colours](begin + (end - begin) * place)))

    def ticks(self) -> list[tuple[float, float]]:
        """(figure, its place from 0 to 1): a few round figures."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        found: Sequence[float]
        if self.log:
            found = self._inside(LogLocator(10, (1.0,)).tick_values(self.low, self.high))
            if len(found) < 3:
                found = self._inside(LogLocator(10, (1.0, 2.0, 5.0)).tick_values(self.low, self.high))
        else:
            found = self._inside(MaxNLocator(4).tick_values(self.low, self.high))
        return [(figure, self._place(figure)) for figure in found]

    def _inside(self, figures: Iterable[float]) -> list[float]:
        return [float(f) for f in figures if self.low * (1 - 1e-9) <= f + 1e-12 and f <= self.high * (1 + 1e-9) + 1e-12]

    def _place(self, figure: float) -> float:
        if self.log:
            place = math.log(max(figure, self.low) / self.low) / math.log(self.high / self.low)
        else:
            place = (figure - self.low) / (self.high - self.low)
        return min(max(place, 0.0), 1.0)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on #rrggbb (relative luminance as in WCAG 2).

    Black is not quite: matplotlib says nothing of a colour that is SVG's own.
    """
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    light = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return "#000001" if 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] > 0.179 else "#ffffff"
