"""What matplotlib draws, as SVG that is a part of a page: in the page's colours, with texts as texts, small.

The package matplotlib (extra `report`) lays out axes and ticks and knows colour maps. Its SVG names its own colours,
fonts and ids, and has no texts for single cells; `Canvas.svg` puts those of the page in their place.
"""

from __future__ import annotations

import html
import importlib
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from ggufmerge.errors import GgufmergeError
from ggufmerge.text import printable

INK, NOTHING = "#010203", "#030201"  # stand for the colour of texts, and for that of a cell without a figure
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "font.size": 11.0,
    "path.simplify": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ggufmerge",
    "text.color": INK,
    "text.parse_math": False,  # names of tensors may have dollars in them
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 11.0,
}


def check_drawing() -> None:
    """GgufmergeError when there is no matplotlib; to be asked before any work is done."""
    try:
        with _silent():
            importlib.import_module("matplotlib.backends.backend_svg")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == "matplotlib"
        why = "" if missing else f" (it does not load: {error})"
        raise GgufmergeError(
            f"--report needs matplotlib, which draws it{why}: pip install 'ggufmerge[report]'"
        ) from None


class Canvas:
    """A drawing of so many pixels, whose places are pixels from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)
        self._canvas = FigureCanvasSVG(self.figure)
        self._titles: dict[str, Sequence[str]] = {}

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes of matplotlib in this rectangle, without their frame."""
        place = (
            left / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        axes = self.figure.add_axes(place)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.patch.set_visible(False)
        axes.tick_params(length=0)
        return axes

    def write(self, x: float, y: float, words: str, side: str = "left", size: float = 11.0, colour: str = INK) -> None:
        """A text of one line around `y`, that begins (or has its end or middle: "right", "center") at `x`."""
        self.figure.text(
            x / self.width,
            1 - (y + 0.36 * size) / self.height,
            printable(words),
            ha=side,
            va="baseline",
            fontsize=size,
            color=colour,
        )

    def cells(
        self,
        places: Sequence[tuple[float, float]],
        size: tuple[float, float],
        colours: Sequence[str],
        titles: Sequence[str],
    ) -> None:
        """Rectangles of one size with their upper left corners at these places, and what is told of each."""
        from matplotlib.collections import PolyCollection
        from matplotlib.transforms import Affine2D

        if not places:
            return
        width, height = size
        shape = [(0, 0), (width, 0), (width, -height), (0, -height)]
        collection = PolyCollection([shape], offsets=places, facecolors=colours, edgecolors="none", linewidths=0)
        collection.set_offset_transform(Affine2D().scale(1, -1).translate(0, self.height))
        collection.set_transform(Affine2D())
        name = f"cells{len(self._titles)}"
        collection.set_gid(name)
        self._titles[name] = titles
        self.figure.add_artist(collection, clip=False)

    def svg(self, number: int, told: str) -> str:
        """The drawing for a page. number: of the drawing in it.  told: what it shows, for those who do not see it."""
        out = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._canvas.print_svg(out, metadata=nothing)
        return _for_page(out.getvalue(), self._titles, number, told)


def room_for(words: Iterable[str], size: float = 11.0) -> float:
    """Pixels that the longest of some texts takes in the font of matplotlib, which is a broad one; 0 without any."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    longest = 0.0
    for text in map(printable, words):
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
        # letters that the font lacks are as broad as they are high
        longest = max(longest, width, size * sum(unicodedata.east_asian_width(c) in "WF" for c in text))
    return longest


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib as it comes, whatever the user has set."""
    with _silent():
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            yield


@contextmanager
def _silent() -> Iterator[None]:
    """matplotlib says nothing, neither of letters that its font lacks nor of folders where it cannot keep its lists."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


_KEPT = {  # attributes, by element; all else goes
    "svg": (),
    "g": ("transform",),
    "defs": (),
    "path": ("d", "id", "transform"),
    "use": ("x", "y", "transform"),
    "text": ("x", "y", "transform"),
    "tspan": ("x", "y"),
}
_PROPERTIES = ("fill", "stroke", "stroke-width", "font-size", "text-anchor")
_NUMBER = re.compile(r"-?\d+\.\d+")
_NO_TURN = re.compile(r"rotate\(-?0(\.0*)? [^)]*\) ?")
_INK_WORDS = {INK: "currentColor"}


def _for_page(svg: str, titles: dict[str, Sequence[str]], number: int, told: str) -> str:
    root = ElementTree.fromstring(svg)
    box = " ".join(f"{float(x):g}" for x in root.get("viewBox", "").split())
    width = box.split()[2]
    names = {id_: f"p{number}-{i}" for i, id_ in enumerate(e.get("id", "") for e in root.iter() if _is_shape(e))}
    parts = "".join(_element(child, titles, names) for child in root)
    return f'<svg viewBox="{box}" width="{width}" role="img" aria-label="{html.escape(printable(told))}">{parts}</svg>'


def _element(element: ElementTree.Element, titles: dict[str, Sequence[str]], names: dict[str, str]) -> str:
    """An element and what is in it, in few letters."""
    tag = element.tag.rpartition("}")[2]
    if tag not in _KEPT:
        return ""
    if tag == "g" and (found := titles.get(element.get("id", ""))) is not None:
        return _cells(element, found, names)
    within = "".join(_element(child, titles, names) for child in element)
    if tag in ("text", "tspan"):
        within = html.escape(element.text or "") + within
    if tag in ("g", "defs") and not within:
        return ""
    attributes = _attributes(element, names)
    if tag == "path" and 'd=""' in attributes:
        return ""
    if tag == "g" and not attributes:
        return within
    return f"<{tag}{attributes}>{within}</{tag}>" if within else f"<{tag}{attributes}/>"


def _cells(group: ElementTree.Element, titles: Sequence[str], names: dict[str, str]) -> str:
    """A collection of `Canvas.cells`, each cell with its text."""
    shapes = "".join(_element(child, {}, names) for child in group if child.tag.endswith("}defs"))
    drawn = [e for child in group if not child.tag.endswith("}defs") for e in child.iter() if _is_shape(e)]
    cells = []
    for cell, title in zip(drawn, titles, strict=True):
        tag = cell.tag.rpartition("}")[2]
        name = ' class="cell"' if tag == "path" and 'class="' not in _attributes(cell, names) else ""
        about = f"<title>{html.escape(printable(title))}</title>" if title else ""
        cells.append(f"<{tag}{name}{_attributes(cell, names)}>{about}</{tag}>")
    return shapes + "".join(cells)


def _is_shape(element: ElementTree.Element) -> bool:
    return element.tag.rpartition("}")[2] in ("use", "path")


def _attributes(element: ElementTree.Element, names: dict[str, str]) -> str:
    tag = element.tag.rpartition("}")[2]
    found = {name: element.get(name, "") for name in _KEPT[tag] if element.get(name)}
    if "id" in found:
        found["id"] = names[found["id"]]
    link = element.get("{http://www.w3.org/1999/xlink}href", "")
    if link.startswith("#"):
        found["href"] = f"#{names[link[1:]]}"
    for declaration in element.get("style", "").split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            name, value = "font-size", value.split()[0]
        if name not in _PROPERTIES:
            continue
        if tag in ("text", "tspan") and value == INK:
            continue  # as all texts of the page
        if tag == "text" and name == "fill":
            found["style"] = f"fill:{value}"  # wins over the page's style, which an attribute would not
        elif value == NOTHING:
            found["class"] = "none" if name == "fill" else "rule"
        else:
            found[name] = _INK_WORDS.get(value, value)
    if "transform" in found:
        found["transform"] = _NO_TURN.sub("", found["transform"]).strip()
    out = []
    for name, value in found.items():
        if name in ("d", "x", "y", "transform"):
            value = _NUMBER.sub(lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), value)
            value = " ".join(value.split())
        if value:
            out.append(f' {name}="{html.escape(value)}"')
    return "".join(out)
