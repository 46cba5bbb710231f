"""The report of `quantize`: which tensor got which type, and what that cost."""

from __future__ import annotations

from ggufmerge.files.shards import short_name
from ggufmerge.report.grid import Grid
from ggufmerge.report.html.page import Section, listed, page
from ggufmerge.report.html.plots import Cell, Drawings
from ggufmerge.report.html.scales import Scale
from ggufmerge.report.html.suggest import suggest_report
from ggufmerge.report.html.types_map import types_map
from ggufmerge.report.html.words import Facts, figure, parents_table, rules_of, seconds, types_table, warnings_of
from ggufmerge.report.notes import noted
from ggufmerge.text import count, size


def quantize_report(facts: Facts) -> str:
    """A page of the facts of `quantize`."""
    if "suggestions" in facts:
        return suggest_report(facts)
    tensors = facts["tensors"]
    grid, drawings = Grid.of(t["name"] for t in tensors), Drawings()
    errors = {t["name"]: t["relative_error"] for t in tensors if t["relative_error"]}
    cells = {t["name"]: Cell(t["relative_error"] or None, _told(t)) for t in tensors}
    result = (
        f"{facts['output']}: {facts['file_type']}, {count(facts['parameters'])} parameters, "
        f"{facts['bits_per_weight']:.2f} bits per weight, {size(facts['nbytes'])}, {seconds(facts['seconds'])}"
    )
    notes = noted((t["name"], decision) for t in tensors for decision in t["decisions"])
    matrices = [f"importance matrix: {path}" for path in facts["imatrix"]]
    by_type: dict[str, list[float]] = {}
    for t in tensors:
        if t["relative_error"] is not None and t["action"] != "copy":
            by_type.setdefault(t["type"], []).append(t["relative_error"])
    columns = (
        ("least error", {kind: figure(min(found), ".4f") for kind, found in by_type.items()}),
        ("largest error", {kind: figure(max(found), ".4f") for kind, found in by_type.items()}),
    )
    return page(
        f"{short_name(str(facts['output']))}: quantized",
        [result],
        [
            Section(
                "What was decided",
                warnings_of(facts) + listed(notes, "note") + listed(matrices) + rules_of(tensors),
            ),
            Section("Types", types_map(drawings, tensors, grid) + types_table(tensors, columns)),
            Section(
                "Error of rounding",
                drawings.heat_map(
                    "Relative error of each tensor: RMS of what rounding changed over RMS of the weights",
                    grid,
                    cells,
                    Scale.of(errors.values()),
                    lambda e: f"{e:.2g}",
                    missing="copied, or without an error",
                )
                or listed(["No tensor was rounded: all keep their values."]),
            ),
            Section("The model it was made from", parents_table(facts["parents"])),
        ],
        f"ggufmerge {facts['version']}",
    )


def _told(tensor: Facts) -> str:
    if tensor["action"] == "copy":
        return "copied byte for byte"
    if tensor["relative_error"] is None:
        return "not measured: an interrupted run had written it"
    return f"{tensor['relative_error']:.4f}" if tensor["relative_error"] else "no error"
