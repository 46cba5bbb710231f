"""The report of `diff`: where models differ, what of it is rounding, and how several changes relate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from ggufmerge.files.shards import short_name
from ggufmerge.report.grid import Grid
from ggufmerge.report.html.page import Section, listed, page, paragraph, table
from ggufmerge.report.html.plots import Cell, Drawings
from ggufmerge.report.html.scales import Scale
from ggufmerge.report.html.words import Facts, figure, percent, warnings_of
from ggufmerge.text import count, first_few

_ALIKE = "nothing changed, or hidden by rounding"
_View = Callable[[Facts], Facts]  # of a signal: one of the differences in it


def diff_report(facts: Facts) -> str:
    """A page of the facts of `diff`."""
    models = [facts["first"], facts["second"], *facts["others"]]
    letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(models))]
    grid, drawings = Grid.of(t["name"] for t in facts["tensors"]), Drawings()
    views: list[tuple[str, _View]] = [("from A to B", lambda signal: signal["difference"])]
    if facts["base"] is not None:
        views = [(f"from the base to {x}", lambda signal, i=i: signal["changes"][i]) for i, x in enumerate(letters)]  # type: ignore[misc]
    named = [[letter, path] for letter, path in zip(letters, models, strict=True)]
    if facts["base"] is not None:
        named.append(["base", facts["base"]])
    first, *more = facts["summary"]
    short = [short_name(path) for path in models]
    return page(
        " and ".join([", ".join(short[:-1]), short[-1]]) + (" beside their base" if facts["base"] else ": compared"),
        [first],
        [
            Section("What it means", warnings_of(facts) + listed([*more, *_apart(facts)])),
            Section("The models", table(["", "file"], named)),
            Section("In sum", _totals(facts, views)),
            Section("How alike the changes are", _conflict(facts, letters, grid, drawings)),
            Section("Where they differ", _maps(facts, views, grid, drawings)),
        ],
        f"ggufmerge {facts['version']}",
    )


def _apart(facts: Facts) -> list[str]:
    """Tensors that not all of them have."""
    lines = [
        f"only in {short_name(facts[which])}: {first_few(facts[key], 5)}"
        for key, which in (("only_first", "first"), ("only_second", "second"))
        if facts[key]
    ]
    return lines + (
        [f"not in all models, and left out: {first_few(facts['left_out'], 5)}"] if facts["left_out"] else []
    )


def _totals(facts: Facts, views: Sequence[tuple[str, _View]]) -> str:
    if not facts["tensors"]:
        return ""
    total = facts["total"]
    rows = []
    for name, view in views:
        found = view(total["signal"])
        rows.append(
            [
                name,
                percent(found["seen"]),
                percent(found["noise"]),
                percent(found["change"]) if found["change"] is not None else f"< {percent(found['limit'])}",
                f"± {percent(found['error'])}" if found["error"] else "",
                figure(found["signal_to_noise"], ".2f"),
                percent(found["identical_blocks"], 1),
            ]
        )
    heads = ["of all weights", "seen", "rounding noise", "change", "", "change / noise", "same blocks"]
    told = (
        "seen: RMS of the difference relative to the weights it starts from; noise: RMS of the rounding errors in it; "
        "change: RMS of what is likely to be behind it, < where it is too small to be seen"
    )
    return (
        table(heads, rows, numbers=6)
        + paragraph(told, "soft")
        + paragraph(
            f"{count(total['values'])} weights in {len(facts['tensors'])} tensors that all models have; "
            f"{percent(total['difference']['changed'], 1)} of them differ between A and B.",
        )
    )


def _conflict(facts: Facts, letters: Sequence[str], grid: Grid, drawings: Drawings) -> str:
    signal = facts["total"]["signal"]
    if not signal["cosines"] or facts["identical"]:
        return ""
    pairs = list(combinations(range(len(letters)), 2))

    def square(values: Sequence[Sequence[float | None]], form: Callable[[float], str]) -> list[list[Cell | None]]:
        return [
            [None if i == j else Cell(v, "-" if v is None else form(v)) for j, v in enumerate(row)]
            for i, row in enumerate(values)
        ]

    def signs(share: float) -> str:
        return f"{100 * share:.0f} %"

    parts = [
        paragraph(
            "Cosine: 1 is the same direction, 0 unrelated, below 0 each takes a part of the other away. Signs: share "
            "of the weights that both move in the same direction; 50 % is chance."
        )
    ]
    if len(letters) > 2:
        scale = Scale.both_ways(v for i, row in enumerate(signal["cosines"]) for j, v in enumerate(row) if i != j)
        parts.append(
            drawings.matrix("Cosine of the changes", letters, square(signal["cosines"], "{:.2f}".format), scale)
        )
        parts.append(
            drawings.matrix(
                "Signs that agree",
                letters,
                square(signal["same_signs"], signs),
                Scale(0.0, 1.0, colours="coolwarm"),
            )
        )
    else:
        values = [[figure(signal["cosines"][0][1], ".3f"), percent(signal["same_signs"][0][1], 1)]]
        parts.append(table(["cosine of the changes", "signs that agree"], values))
    layers = {int(number): found["signal"]["cosines"] for number, found in facts["layers"].items()}
    rows = {
        f"{letters[i]} and {letters[j]}": {n: _cosine(cosines[i][j]) for n, cosines in layers.items()} for i, j in pairs
    }
    scale = Scale.both_ways(cell.figure for row in rows.values() for cell in row.values())
    parts.append(drawings.lines("Cosine of two changes in each layer", rows, scale, "{:.2g}".format, missing=_ALIKE))
    cells = {t["name"]: _lowest(t["signal"]["cosines"], letters, pairs) for t in facts["tensors"]}
    parts.append(
        drawings.heat_map(
            "Cosine of the changes of each tensor" + (", of the two that agree least" if len(pairs) > 1 else ""),
            grid,
            cells,
            Scale.both_ways(cell.figure for cell in cells.values()),
            "{:.2g}".format,
            missing=_ALIKE,
        )
    )
    return "".join(parts)


def _cosine(value: float | None, pair: str = "") -> Cell:
    if value is None:
        return Cell(None, _ALIKE)
    return Cell(value, f"{value:.3f}{pair}")


def _lowest(
    cosines: Sequence[Sequence[float | None]], letters: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> Cell:
    """The pair of changes that agrees least."""
    known = [(value, i, j) for i, j in pairs if (value := cosines[i][j]) is not None]
    if not known:
        return _cosine(None)
    value, i, j = min(known)
    return _cosine(value, f" ({letters[i]} and {letters[j]})" if len(pairs) > 1 else "")


def _maps(facts: Facts, views: Sequence[tuple[str, _View]], grid: Grid, drawings: Drawings) -> str:
    if facts["identical"] or not facts["tensors"]:
        return ""
    parts = []
    changes = [{t["name"]: _change(view(t["signal"])) for t in facts["tensors"]} for _, view in views]
    scale = Scale.of(cell.figure for cells in changes for cell in cells.values())  # one for all, to compare them
    for (name, _), cells in zip(views, changes, strict=True):
        parts.append(
            drawings.heat_map(
                f"Change {name}, relative to the weights", grid, cells, scale, percent, missing="hidden by rounding"
            )
            or paragraph(f"Change {name}: nothing was changed, or no change can be seen beside the rounding.")
        )
    if not facts["rounded"]:
        parts.append(paragraph("No model is quantized, so there is no noise of rounding: all that is seen is change."))
        return "".join(parts)
    for name, view in views:
        noise = {t["name"]: Cell(n := view(t["signal"])["noise"], percent(n)) for t in facts["tensors"]}
        ratio = {t["name"]: _ratio(view(t["signal"])) for t in facts["tensors"]}
        parts.append(
            drawings.heat_map(
                f"Noise of rounding {name}, relative to the weights",
                grid,
                noise,
                Scale.of(cell.figure for cell in noise.values()),
                percent,
            )
        )
        parts.append(
            drawings.heat_map(
                f"Change {name} over noise: above 1 there is more change than rounding",
                grid,
                ratio,
                Scale.of(cell.figure for cell in ratio.values()),
                "{:.2g}".format,
                missing="no noise, or a change that cannot be seen",
            )
        )
    return "".join(parts)


def _change(beside: Facts) -> Cell:
    if beside["change"] is not None:
        return Cell(beside["change"], percent(beside["change"]) if beside["change"] else "the same")
    if beside["limit"] is not None:
        return Cell(None, f"rounding hides changes below {percent(beside['limit'])}")
    return Cell(None, "no figure: there was nothing before")


def _ratio(beside: Facts) -> Cell:
    if beside["signal_to_noise"] is not None:
        return Cell(beside["signal_to_noise"], f"{beside['signal_to_noise']:.2f}")
    return Cell(None, "no noise" if not beside["noise"] else "the change cannot be seen")
