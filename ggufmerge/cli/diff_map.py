"""The maps of `ggufmerge diff --map`: a letter for each tensor, kinds below each other, layers side by side."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from ggufmerge.report.grid import Grid, shortly
from ggufmerge.text import printable, shortened

if TYPE_CHECKING:
    from rich.text import Text

    from ggufmerge.engine.changes import Beside, Signal
    from ggufmerge.engine.compare import Comparison

UNRELATED, ALIKE = 0.1, 0.6  # cosines: up to the one two changes are unrelated, from the other on largely the same

_WIDTH = 80  # columns, where nobody knows how many there are
_LABEL, _FEWEST = 22, 8  # letters of a name at most, columns of a map at least
_SAME, _HIDDEN, _FROM_NOTHING = "·", "?", "!"
_SHADES = "░▒▓█"
_PLAIN = {"░": ".", "▒": "-", "▓": "+", "█": "#", _SAME: "0"}  # where the terminal lacks these letters
_COLOURS = tuple(f"color({number})" for number in (54, 61, 31, 36, 113, 220))  # like viridis, of the 256 that most have
_FLATTEST, _STEEPEST = 1.15, 10.0  # ratio of the ends of a step
_GREY, _RED, _GREEN, _BLUE = "bright_black", "red", "green", "blue"


@dataclass(frozen=True)
class _Letter:
    """What a figure looks like, and what that means."""

    letter: str
    style: str
    meaning: str


def show_maps(result: Comparison, letters: Sequence[str]) -> None:
    """Where the changes are: from A to B, or from the base to each model, and with several models where these pull in
    one direction and where against each other. letters: what the models are called.
    """
    from ggufmerge.cli.terminal import console

    grid = Grid.of(t.name for t in result.tensors)
    views: list[tuple[str, Callable[[Signal], Beside]]] = [("from A to B", lambda signal: signal.difference)]
    if result.base is not None:
        views = [(f"from the base to {x}", lambda signal, i=i: signal.changes[i]) for i, x in enumerate(letters)]  # type: ignore[misc]
    changes = [{t.name: view(t.signal).change for t in result.tensors} for _, view in views]
    steps = Steps.of((v for cells in changes for v in cells.values()), coloured=bool(console().color_system))
    for (name, _), cells in zip(views, changes, strict=True):
        _show(f"map of the change {name}, relative to the weights", grid, cells, _middle, steps.letter)
    if result.base is not None:
        lowest = {t.name: _lowest(t.signal.cosines) for t in result.tensors}
        whose = "of the two changes" if len(letters) == 2 else "of those two changes that agree least"
        _show(f"map of how alike they are: cosine {whose}", grid, lowest, _least, _likeness)


@dataclass(frozen=True)
class Steps:
    """Sizes of changes in steps: each is so many times as large as the one before.

    ends: the largest figure of each step.  coloured: whether colours tell them apart, else shades do.
    """

    ends: tuple[float, ...]
    coloured: bool = False

    @classmethod
    def of(cls, figures: Iterable[float], *, coloured: bool = False) -> Steps:
        """For these figures: even in powers from small ones to large ones, and a few that are larger still are in the
        last step.

        >>> Steps.of([0.01, 0.02, 0.04, 0.08]).ends
        (0.0088, 0.018, 0.038, 0.08)
        """
        known = sorted(f for f in figures if 0 < f < math.inf)
        count = len(_COLOURS) if coloured else len(_SHADES)
        if not known:
            return cls((1.0,), coloured)
        low, high = known[len(known) // 10], known[len(known) * 19 // 20]
        ratio = min(max((high / low) ** (1 / count), _FLATTEST), _STEEPEST)
        ends = [_rounded(high / ratio**k, round) for k in range(count - 1, 0, -1)]
        return cls((*ends, _rounded(known[-1], math.ceil)), coloured)

    def letter(self, figure: float) -> _Letter:
        """What stands for a change of this size; NaN is one that rounding hides."""
        if math.isnan(figure):
            return _Letter(_HIDDEN, _GREY, "hidden by rounding")
        if figure == 0:
            return _Letter(_SAME, _GREY, "the same")
        if math.isinf(figure):
            return _Letter(_FROM_NOTHING, "", "all that was there before is 0")
        step = next((i for i, end in enumerate(self.ends) if figure <= end), len(self.ends) - 1)
        shade = "█" if self.coloured else _SHADES[step]
        return _Letter(shade, _COLOURS[step] if self.coloured else "", f"to {_percent(self.ends[step])}")


def _show(
    title: str,
    grid: Grid,
    figures: Mapping[str, float],
    together: Callable[[Sequence[float]], float],
    look: Callable[[float], _Letter],
) -> None:
    """A map, below it the numbers of the layers, the tensors outside them, and what its letters mean.

    together: the figure of several layers that share a letter, where there are more layers than columns.
    """
    from rich.cells import set_cell_size
    from rich.text import Text

    from ggufmerge.cli.facts import space
    from ggufmerge.cli.terminal import console, tell

    out = console()
    width = out.width - 1 if out.is_terminal else _WIDTH
    plain = not shows(_SHADES + _SAME)
    labels = [*map(printable, grid.kinds), *(printable(shortly(name)) for name in grid.outside)]
    left = min(max(map(len, [*labels, "layer"])), _LABEL, max(width // 3, 5))
    group = max(1, math.ceil(len(grid.layers) / max(width - left - 2, _FEWEST)))
    used: dict[str, _Letter] = {}

    def cell(values: Sequence[float | None]) -> tuple[str, str]:
        known = [v for v in values if v is not None]
        if not known:
            return " ", ""
        found = look(together(known))
        used[found.meaning] = found
        return (_PLAIN.get(found.letter, found.letter) if plain else found.letter), found.style

    lines = []
    for kind, row in zip(grid.kinds, grid.rows(figures), strict=True):
        line = Text(set_cell_size(shortened(printable(kind), left), left) + "  ")
        for start in range(0, len(row), group):
            line.append(*cell(row[start : start + group]))
        lines.append(line)
    if grid.layers:
        lines.append(Text(f"{'layer':<{left}}  {_numbers(grid.layers[::group])}"))
    for name in grid.outside:
        line = Text(set_cell_size(shortened(printable(shortly(name)), left), left) + "  ")
        line.append(*cell([figures[name]]))
        lines.append(line)
    legend = [Text()]
    for found in _in_order(used.values(), look):
        letter = _PLAIN.get(found.letter, found.letter) if plain else found.letter
        if out.is_terminal and legend[-1].cell_len + len(found.meaning) + 4 > width:
            legend.append(Text())
        legend[-1].append("  " if legend[-1] else "").append(letter, found.style).append(f" {found.meaning}")
    space()
    tell([f"{title}{f' (a letter for {group} layers)' if group > 1 else ''}"])
    _print([*lines, *legend])
    space()


def _print(lines: Iterable[Text]) -> None:
    from ggufmerge.cli.terminal import console, say

    out = console()
    for line in lines:
        if out.is_terminal:
            out.print(line, overflow="fold")
        else:
            say(line.plain.rstrip())


def _in_order(used: Iterable[_Letter], look: Callable[[float], _Letter]) -> list[_Letter]:
    """Letters from what is least to what is most, and what has no figure at the end."""
    order = [look(x / 100).meaning for x in range(-100, 101)]
    if getattr(look, "__self__", None) is not None:
        steps: Steps = look.__self__  # type: ignore[attr-defined]
        order = [look(0.0).meaning, *(look(end).meaning for end in steps.ends)]
    place = {meaning: i for i, meaning in enumerate(dict.fromkeys(order))}
    return sorted(used, key=lambda found: place.get(found.meaning, len(place)))


def _numbers(layers: Sequence[int]) -> str:
    """The numbers of layers, of which each has a column, as far as they have room.

    >>> _numbers(range(12))
    '0    5    10'
    """
    every = 5 if len(str(layers[-1])) < 4 else 10
    line = ""
    for column in range(0, len(layers), every):
        line = f"{line:<{column}}{layers[column]}"
    return line


def _likeness(cosine: float) -> _Letter:
    if math.isnan(cosine):
        return _Letter(_HIDDEN, _GREY, "nothing changed, or hidden by rounding")
    if cosine < -UNRELATED:
        return _Letter("x", _RED, f"against each other (below -{UNRELATED})")
    if cosine < UNRELATED:
        return _Letter(_SAME, _GREY, "unrelated")
    if cosine < ALIKE:
        return _Letter("+", _GREEN, f"a part in common (from {UNRELATED} on)")
    return _Letter("█", _BLUE, f"largely the same (from {ALIKE} on)")


def _lowest(cosines: Sequence[Sequence[float]]) -> float:
    """That of the two changes that agree least; NaN where there are none."""
    return _least([cosines[i][j] for i, j in combinations(range(len(cosines)), 2)])


def _least(values: Sequence[float]) -> float:
    return min((v for v in values if not math.isnan(v)), default=math.nan)


def _middle(values: Sequence[float]) -> float:
    """Root mean square of those that are known."""
    known = [v for v in values if not math.isnan(v)]
    return math.sqrt(sum(v * v for v in known) / len(known)) if known else math.nan


def shows(letters: str) -> bool:
    """Whether standard output has these letters."""
    try:
        letters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _rounded(figure: float, how: Callable[[float], int]) -> float:
    """With two digits that count.

    >>> _rounded(0.01234, round), _rounded(0.01234, math.ceil)
    (0.012, 0.013)
    """
    unit = 10.0 ** (math.floor(math.log10(figure)) - 1)
    return float(f"{how(figure / unit) * unit:.2g}")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
