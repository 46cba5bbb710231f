"""The report of `build` and `merge`: what became of every tensor, and what is left of the changes."""

from __future__ import annotations

from ggufmerge.files.shards import short_name
from ggufmerge.report.grid import Grid
from ggufmerge.report.html.page import Section, block, listed, page, paragraph
from ggufmerge.report.html.plots import Cell, Drawings
from ggufmerge.report.html.scales import Scale
from ggufmerge.report.html.types_map import types_map
from ggufmerge.report.html.words import (
    Facts,
    files_section,
    parents_table,
    percent,
    rules_of,
    seconds,
    span,
    types_table,
    warnings_of,
)
from ggufmerge.report.notes import noted
from ggufmerge.text import count, size


def build_report(facts: Facts) -> str:
    """A page of the facts of `build` or `merge`."""
    tensors = facts["tensors"]
    grid, drawings = Grid.of(t["name"] for t in tensors), Drawings()
    shards = f" in {len(facts['files'])} shards" if len(facts["files"]) > 1 else ""
    made = (("merged", "merged"), ("converted", "converted"), ("copied", "copied byte for byte"))
    what = ", ".join(f"{facts[key]} {verb}" for key, verb in made if facts[key])
    result = [
        f"{facts['output']}: {facts['file_type']}, {count(facts['parameters'])} parameters, {size(facts['nbytes'])}"
        f"{shards}, {seconds(facts['seconds'])}",
        f"{len(tensors)} tensors: {what}",
    ]
    kept = {found["type"]: found for found in facts["kept"]}
    columns = (
        ("change that survived", {kind: percent(f["share"], 0) for kind, f in kept.items()}),
        ("noise / change", {kind: f"{f['noise']:.2f}" for kind, f in kept.items()}),
    )
    return page(
        f"{short_name(str(facts['output']))}: {facts['method'] or 'a merge'} of {len(facts['parents'])} models",
        result,
        [
            Section("What was decided", _decided(facts)),
            Section("What was merged", _merged(facts)),
            Section("Types", types_map(drawings, tensors, grid) + types_table(tensors, columns if kept else ())),
            Section("What is left of the changes", _left(facts, grid, drawings)),
            Section("Recipe in effect", block(facts["recipe"])),
            files_section(facts),
        ],
        f"ggufmerge {facts['version']}",
    )


def _decided(facts: Facts) -> str:
    chosen = [f"{what}: {one['value']} ({one['why']})" for what, one in facts.get("chosen", {}).items()]
    decisions = [(t["name"], decision) for t in facts["tensors"] for decision in t["decisions"]]
    later = [(one["name"], one["note"]) for one in facts["notes"]]
    notes = [*noted(decisions), *noted(later, len(facts["tensors"]))]
    if facts["resumption"]:
        notes.append(f"note: {facts['resumption']}")
    elif facts["resumed"]:
        notes.append(f"{facts['resumed']} tensors were taken over from an interrupted build")
    return warnings_of(facts) + listed(chosen) + listed(notes, "note") + rules_of(facts["tensors"])


def _merged(facts: Facts) -> str:
    settings = [f"{name} {span(values)}" for name, values in facts["settings"].items()]
    everywhere = paragraph(f"For all of them: {', '.join(settings)}") if settings else ""
    return (
        paragraph(f"Method {facts['method']}, of {facts['architecture']} models.")
        + parents_table(facts["parents"])
        + everywhere
    )


def _left(facts: Facts, grid: Grid, drawings: Drawings) -> str:
    if not facts["kept"]:
        return paragraph("Nothing was lost by rounding: no tensor that was changed is written in a quantized type.")
    measured = [t for t in facts["tensors"] if t["survival"] is not None]
    shares = {
        t["name"]: Cell(t["survival"], f"{percent(t['survival'], 1)} of the change, {_beside(t['noise'])}")
        for t in measured
    }
    noise = {t["name"]: Cell(t["noise"], _beside(t["noise"])) for t in measured}
    whole = facts["survival"]
    return (
        listed(found["sentence"] for found in facts["kept"])
        + (paragraph(f"All of it together: {percent(whole, 0)} of the change survived.") if whole is not None else "")
        + drawings.heat_map(
            "Share of the change of each tensor that survived rounding",
            grid,
            shares,
            Scale(0.0, 1.0),
            lambda share: percent(share, 0),
        )
        + drawings.heat_map(
            "Noise that rounding put beside it, relative to the change",
            grid,
            noise,
            Scale.of(cell.figure for cell in noise.values()),
            lambda ratio: f"{ratio:.2g}",
        )
        + paragraph("Blank: not changed, or not rounded.", "soft")
    )


def _beside(noise: float) -> str:
    return f"noise {noise:.2f} times as large" if noise else "no noise to speak of"
