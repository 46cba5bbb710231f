"""The drawings of reports: heat maps of layers and kinds of tensors, bars, matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggufmerge.report.grid import Grid, shortly
from ggufmerge.report.html.drawing import INK, NOTHING, Canvas, room_for
from ggufmerge.report.html.page import figure, paragraph, text
from ggufmerge.report.html.scales import Scale, ink_on
from ggufmerge.text import printable, shortened

_WIDTH = 960.0  # pixels of a drawing, where its layers have room in it
_ROW = 17.0  # pixels
_NAME = 26  # letters of a label
_MOST_LINES = 150  # rows of a map
_MOST_BYTES = 1_400_000  # of all cells of a page
_BYTES = 95  # of a cell, without what is told of it
_TITLE = 80  # letters of the name of a tensor, and of what is told beside one
PALETTE = (
    "#4477aa",
    "#ee8866",
    "#228833",
    "#aa3377",
    "#66ccee",
    "#ccbb44",
    "#bb5566",
    "#888888",
)  # P. Tol's, for all eyes


@dataclass(frozen=True)
class Cell:
    """What is shown of a tensor. figure: for its colour; None when there is none.  told: in words."""

    figure: float | None
    told: str


class Drawings:
    """The drawings of one page, numbered, as many as leave it small enough."""

    def __init__(self) -> None:
        self._number, self._left = 0, _MOST_BYTES

    def heat_map(
        self,
        caption: str,
        grid: Grid,
        cells: Mapping[str, Cell],
        scale: Scale,
        say: Callable[[float], str],
        *,
        names: Mapping[float, str] | None = None,
        missing: str = "no figure",
    ) -> str:
        """Tensors as cells; those outside the layers below them, one a row, with their figures in words.

        cells: by the names of tensors; the others are blank.  say: how figures stand beside the scale.
        names: what figures mean, where they are few kinds and not on a scale, in their order.
        missing: why a cell may have no figure.
        """
        if not any(cell.figure is not None for cell in cells.values()):
            return ""
        size = sum(_BYTES + len(cell.told) + min(len(name), _TITLE) for name, cell in cells.items())
        if size > self._left:
            return paragraph(f"{caption}: left out, to keep this page small; the figures are in --json", "soft")
        self._left -= size
        kinds, outside = grid.kinds[:_MOST_LINES], [n for n in grid.outside if n in cells][:_MOST_LINES]
        words = [shortened(printable(cells[name].told), _TITLE) for name in outside]
        drawn = _Map(grid, kinds, outside, words, with_scale=names is None)
        places, colours, titles = [], [], []
        for name, (row, column) in grid.places.items():
            if name in cells and row < len(kinds):
                places.append(drawn.place(row, column))
                colours.append(scale.colour(cells[name].figure))
                titles.append(f"{shortened(printable(name), _TITLE)}: {cells[name].told}")
        drawn.canvas.cells(places, drawn.cell, colours, titles)
        alone = [cells[name] for name in outside]
        drawn.canvas.cells(
            [drawn.alone(i) for i in range(len(outside))],
            (drawn.single, drawn.cell[1]),
            [scale.colour(cell.figure) for cell in alone],
            [f"{shortened(printable(name), _TITLE)}: {cell.told}" for name, cell in zip(outside, alone, strict=True)],
        )
        for i, told in enumerate(words):
            x, y = drawn.alone(i)
            drawn.canvas.write(x + drawn.single + 6, y + drawn.cell[1] / 2, told)
        key = ""
        if names is None:
            drawn.draw_scale(scale, say)
            if any(cell.figure is None for cell in cells.values()):
                key = _key([("var(--none)", missing)])
        else:
            key = _key([(scale.colour(value), name) for value, name in names.items()])
        left_out = len(grid.kinds) - len(kinds) + len(grid.outside) - len(outside)
        more = paragraph(f"{left_out} rows more are left out", "soft") if left_out and len(kinds) == _MOST_LINES else ""
        return figure(drawn.canvas.svg(self._next(), caption), caption, key) + more

    def lines(
        self,
        caption: str,
        rows: Mapping[str, Mapping[int, Cell]],
        scale: Scale,
        say: Callable[[float], str],
        *,
        missing: str,
    ) -> str:
        """A map whose rows are no kinds of tensors: a row for each name, a cell for each layer."""
        layers = sorted({layer for row in rows.values() for layer in row})
        column = {layer: i for i, layer in enumerate(layers)}
        places = {
            f"{name}, layer {layer}": (i, column[layer]) for i, (name, row) in enumerate(rows.items()) for layer in row
        }
        cells = {f"{name}, layer {layer}": cell for name, row in rows.items() for layer, cell in row.items()}
        return self.heat_map(caption, Grid(tuple(rows), tuple(layers), places, ()), cells, scale, say, missing=missing)

    def matrix(self, caption: str, names: Sequence[str], rows: Sequence[Sequence[Cell | None]], scale: Scale) -> str:
        """Each with each: a square of figures in words, coloured. None leaves a blank."""
        left, side, row = 14 + room_for(names), 58.0, 28.0
        canvas = Canvas(left + side * len(names) + 4, row * (len(names) + 1))
        places, colours, titles = [], [], []
        for i, name in enumerate(names):
            canvas.write(left + side * (i + 0.5), row / 2, name, "center")
            canvas.write(left - 8, row * (i + 1.5), name, "right")
            for j, cell in enumerate(rows[i]):
                if cell is not None:
                    colour = scale.colour(cell.figure)
                    places.append((left + side * j, row * (i + 1)))
                    colours.append(colour)
                    titles.append(f"{name} and {names[j]}: {cell.told}")
                    ink = INK if colour == NOTHING else ink_on(colour)
                    canvas.write(left + side * (j + 0.5) - 1, row * (i + 1.5) - 1, cell.told, "center", colour=ink)
        canvas.cells(places, (side - 2, row - 2), colours, titles)
        return figure(canvas.svg(self._next(), caption), caption)

    def bars(self, caption: str, groups: Mapping[str, Sequence[Bar]], label: str) -> str:
        """Bars from 0 on, in groups with a name each, with whiskers of one standard error and the figure in words.

        label: of the axis.
        """
        bars = [bar for group in groups.values() for bar in group]
        if not bars:
            return ""
        thick, between = 15.0, 12.0
        heights = [thick * len(group) + between for group in groups.values()]
        left = 14 + room_for(map(_label, groups))
        right, foot = 20 + room_for((bar.told for bar in bars), 10), 40.0
        canvas = Canvas(760.0, sum(heights) + foot)
        axes = canvas.axes(left, 0, canvas.width - left - right, sum(heights))
        axes.set_ylim(sum(heights), 0)
        ends = [bar.figure + sign * bar.error for bar in bars for sign in (-1, 1)]
        low, high = min(0.0, *ends), max(0.0, *ends)
        room = (high - low or 1.0) * 0.02
        axes.set_xlim(low - (room if low < 0 else 0), high + (room if high > 0 else 0))
        axes.set_yticks([])
        axes.set_xlabel(label)
        axes.grid(axis="x", color=NOTHING, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.axvline(0, color=INK, linewidth=0.8)
        y = between / 2
        places = []
        for name, group in groups.items():
            canvas.write(left - 10, y + thick * len(group) / 2, _label(name), "right")
            places += [y + thick * (i + 0.5) for i in range(len(group))]
            y += thick * len(group) + between
        axes.barh(places, [bar.figure for bar in bars], height=thick - 3, color=[bar.colour for bar in bars])
        axes.errorbar(
            [bar.figure for bar in bars],
            places,
            xerr=[bar.error for bar in bars],
            fmt="none",
            ecolor=INK,
            elinewidth=1.0,
            capsize=2.5,
        )
        for bar, place in zip(bars, places, strict=True):
            canvas.write(canvas.width - right + 8, place, bar.told, size=10)
        return figure(canvas.svg(self._next(), caption), caption, _key({b.colour: b.name for b in bars}.items()))

    def points(
        self, caption: str, groups: Sequence[tuple[str, str, Sequence[tuple[float, float, str]]]], label: str
    ) -> str:
        """Points, joined within a group by a line: (meaning, colour, [(x, y, words)]) with y above 0 on a scale of
        logarithms, and words beside the points of the first group.
        """
        canvas = Canvas(760.0, 380.0)
        axes = canvas.axes(70, 10, 640, 320)
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.grid(color=NOTHING, linewidth=0.8)
        axes.set_axisbelow(True)
        for number, (_, colour, points) in enumerate(groups):
            axes.plot(
                [x for x, _, _ in points],
                [y for _, y, _ in points],
                color=colour,
                marker="o",
                markersize=4.0,
                linewidth=0.8 if number else 0.0,
            )
            for x, y, words in points if number == 0 else ():
                axes.annotate(printable(words), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=9.0)
        key = _key((colour, name) for name, colour, _ in groups)
        return figure(canvas.svg(self._next(), caption), caption, key)

    def _next(self) -> int:
        self._number += 1
        return self._number


@dataclass(frozen=True)
class Bar:
    """name: what its colour means.  error: a standard error, 0 where it is not known."""

    name: str
    colour: str
    figure: float
    error: float
    told: str


class _Map:
    """Where the parts of a heat map are."""

    def __init__(
        self, grid: Grid, kinds: Sequence[str], outside: Sequence[str], words: Sequence[str], *, with_scale: bool
    ) -> None:
        """words: what is told beside those outside."""
        labels = [_label(kind) for kind in kinds]
        alone = [_label(shortly(name)) for name in outside]
        self._left = 14 + room_for([*labels, *alone, "layer"])
        step = min(24.0, max(4.0, (_WIDTH - self._left) // max(len(grid.layers), 1)))
        self._step = step
        self.cell = (step - 1, _ROW - 1)
        self.single = max(step - 1, 15.0)
        self._below = len(kinds) * _ROW + (28 if kinds else 0)  # where those outside begin
        bottom = self._below + len(outside) * _ROW
        self._scale = bottom + 14
        widths = (step * len(grid.layers), self.single + 6 + room_for(words), 260.0 if with_scale else 0.0)
        width = self._left + max(widths) + 12
        self.canvas = Canvas(width, self._scale + 30 if with_scale else bottom + 2)
        for i, label in enumerate(labels):
            self.canvas.write(self._left - 8, _ROW * (i + 0.5), label, "right")
        for i, label in enumerate(alone):
            self.canvas.write(self._left - 8, self._below + _ROW * (i + 0.5), label, "right")
        if kinds:
            self._number(grid.layers, len(kinds) * _ROW + 9)

    def _number(self, layers: Sequence[int], y: float) -> None:
        """Numbers below some of the layers, the word for them before the first."""
        self.canvas.write(self._left - 8, y, "layer", "right", 10)
        longest = len(str(layers[-1]))
        every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000, 10**9) if n * self._step >= 6.5 * longest + 4)
        for column, layer in enumerate(layers):
            if column % every == 0:
                self.canvas.write(self._left + self._step * (column + 0.5) - 0.5, y, str(layer), "center", 10)

    def place(self, row: int, column: int) -> tuple[float, float]:
        return self._left + self._step * column, _ROW * row

    def alone(self, row: int) -> tuple[float, float]:
        return self._left, self._below + _ROW * row

    def draw_scale(self, scale: Scale, say: Callable[[float], str]) -> None:
        """The colours from the lowest to the highest figure, with some figures below them."""
        steps, width = 48, 240.0
        self.canvas.cells(
            [(self._left + width * i / steps, self._scale) for i in range(steps)],
            (width / steps + 0.3, 9.0),
            [scale.at(i / (steps - 1)) for i in range(steps)],
            [""] * steps,
        )
        for figure_, place in scale.ticks():
            self.canvas.write(self._left + width * place, self._scale + 18, say(figure_), "center", 10)


def _label(name: str) -> str:
    """A name in front of a row."""
    return shortened(printable(name), _NAME)


def _key(entries: object) -> str:
    """What colours mean."""
    parts = [f'<span><i style="background:{colour}"></i>{text(name, 60)}</span>' for colour, name in entries]  # type: ignore[attr-defined]
    return f'<div class="key">{"".join(parts)}</div>'
