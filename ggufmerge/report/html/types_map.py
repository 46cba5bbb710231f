"""The heat map of the types that tensors are written in."""

from __future__ import annotations

from collections.abc import Sequence

from ggufmerge.report.grid import Grid
from ggufmerge.report.html.plots import Cell, Drawings
from ggufmerge.report.html.scales import Scale
from ggufmerge.report.html.words import Facts, bits_of


def types_map(drawings: Drawings, tensors: Sequence[Facts], grid: Grid) -> str:
    """A colour for each type, from the fewest to the most bits a weight, and the rule that chose it for each tensor."""
    kinds = sorted({t["type"] for t in tensors}, key=lambda name: (bits_of(name), name))
    place = {name: float(i) for i, name in enumerate(kinds)}
    cells = {t["name"]: Cell(place[t["type"]], f"{t['type']}, {t['why']}" if t["why"] else t["type"]) for t in tensors}
    return drawings.heat_map(
        "Type of each tensor, from few bits a weight (dark) to many (light)",
        grid,
        cells,
        Scale(0.0, max(len(kinds) - 1.0, 1.0)),
        str,
        names={place[name]: f"{name} ({bits_of(name):.3g} bits)" for name in kinds},
    )
