"""The report of `quantize --suggest`: what a model's files would take, and what harm each would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ggufmerge.files.shards import short_name
from ggufmerge.report.html.page import Section, page, paragraph, table
from ggufmerge.report.html.plots import Drawings
from ggufmerge.report.html.words import Facts, figure, percent, warnings_of
from ggufmerge.text import count, size

_Figure = Callable[[Facts], float | None]
_FIXED, _FITTED = "#c2703d", "#2f7fb8"


def suggest_report(facts: Facts) -> str:
    """A page of the facts of `quantize --suggest`."""
    rows = facts["suggestions"]
    drawings = Drawings()
    measured = any(row["measured"] for row in rows)
    groups = [
        ("mixtures", _FIXED, [row for row in rows if not row["fitted"]]),
        ("types chosen for the same size", _FITTED, [row for row in rows if row["fitted"]]),
    ]
    plots = [_plot(drawings, "Predicted damage by size", groups, lambda row: row["predicted_damage"])]
    if measured:
        title = "Measured KL divergence by size, nats"
        plots.append(_plot(drawings, title, groups, lambda row: (row["measured"] or {}).get("kl")))
    heads = ("type", "size", "bits/weight", "predicted damage", "best for its size")
    more = ("measured KL", "same top token", "tokens/s") if measured else ()
    lines = [_line(row, measured=measured) for row in rows]
    return _page_of(facts, "".join(plots), table((*heads, *more), lines, numbers=len(heads) - 1 + len(more)))


def _page_of(facts: Facts, plots: str, rows: str) -> str:
    source = short_name(str(facts["source"]))
    return page(
        f"{source}: types to choose from",
        [f"{source}: {count(facts['parameters'])} parameters, {size(facts['source_nbytes'])}"],
        [
            Section("What is to be known", warnings_of(facts) + paragraph(str(facts["meaning"]))),
            Section("Damage by size", plots),
            Section("Every choice", rows),
        ],
        f"ggufmerge {facts['version']}",
    )


def _plot(drawings: Drawings, caption: str, groups: Sequence[tuple[str, str, list[Facts]]], of: _Figure) -> str:
    """A plot of two kinds of points, each with its file type in words."""
    found = [
        (name, colour, [(row["nbytes"], y, row["name"]) for row in rows if (y := of(row))])
        for name, colour, rows in groups
    ]
    if not any(points for _, _, points in found):
        return ""
    return drawings.points(caption, found, "size of the tensors, bytes")


def _line(row: Facts, *, measured: bool) -> list[str]:
    told = [
        row["name"],
        size(row["nbytes"]),
        f"{row['bits_per_weight']:.3f}",
        figure(row["predicted_damage"]),
        "yes" if row["on_front"] else "",
    ]
    if measured:
        found = row["measured"] or {}
        told += [figure(found.get("kl")), percent(found.get("same_top")), figure(found.get("speed"), ".1f")]
    return told
