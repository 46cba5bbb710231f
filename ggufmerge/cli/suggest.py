"""`ggufmerge quantize --suggest`: a table of the types that a model could be written in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ggufmerge.cli.report import ReportFile
    from ggufmerge.engine.suggest import Suggestion
    from ggufmerge.evaluation.probes import Bench, Measured
    from ggufmerge.planning.fitting import Market
    from ggufmerge.recipe.budget import ByteBudget

Suggest = Annotated[
    bool, typer.Option("--suggest", help="Show types to choose from, with size and predicted damage; writes nothing.")
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="Try kinds of tensors, and with --suggest the best types, in llama.cpp (extra: llama); takes minutes.",
    ),
]

_RELATIVE = (
    "predicted damage is a KL divergence, in nats, of the right order: compare choices by it, and measure (--measure) "
    "what one of them is worth"
)
_PROBED = "predicted damage is a KL divergence, in nats, by the sensitivity that was measured of this model"


def suggest(
    source: str,
    *,
    imatrix: Sequence[Path],
    budget: ByteBudget | None,
    measure: bool,
    threads: int | None,
    page: ReportFile,
    json: bool,
) -> None:
    """Print what there is to choose from, and write the report of it."""
    from ggufmerge.cli.budget import without_statistics
    from ggufmerge.cli.terminal import print_json, show_warnings
    from ggufmerge.engine.suggest import suggest as choices
    from ggufmerge.engine.suggest import suggestions

    market, rows = choices(source, imatrix=imatrix, budget=budget, threads=threads)
    show_warnings(without_statistics(market))
    found: dict[str, Measured] = {}
    if measure:
        with opened_bench(source, imatrix, threads) as bench:
            market = probed(bench, market)
            rows = suggestions(market, budget)
            for row in rows:
                if row.on_front or row.fitting is None:
                    found[row.name] = bench.measure(row.name, row.fitting or row.name)
    facts = _facts(source, market, rows, found)
    if json:
        print_json(facts)
    else:
        _show(rows, found, str(facts["meaning"]))
    page.write(facts, json=json)


def opened_bench(source: str, imatrix: Sequence[Path], threads: int | None) -> Bench:
    """The model in llama.cpp, to measure against; each try is told of on standard error."""
    from ggufmerge.cli.terminal import console
    from ggufmerge.evaluation.probes import Bench

    out = console(stderr=True)
    return Bench(source, imatrix, threads=threads, tell=lambda what: out.print(f"measuring {what}", markup=False))


def probed(bench: Bench, market: Market) -> Market:
    """The market with the sensitivities of this very model."""
    from ggufmerge.evaluation.probes import scaled, sensitivities

    return scaled(market, sensitivities(bench, market))


def _facts(source: str, market: Market, rows: Sequence[Suggestion], found: dict[str, Measured]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "source": source,
        "source_nbytes": market.unchanged().nbytes,
        "parameters": market.parameters,
        "statistics": market.prediction.statistics,
        "sensitivities": dict(market.prediction.scale),
        "meaning": _PROBED if market.prediction.scale else _RELATIVE,
        "warnings": [],
        "suggestions": [
            {
                "name": row.name,
                "fitted": row.fitting is not None,
                "nbytes": row.nbytes,
                "bits_per_weight": row.bits,
                "predicted_damage": row.harm,
                "on_front": row.on_front,
                "measured": asdict(found[row.name]) if row.name in found else None,
            }
            for row in rows
        ],
    }


def _show(rows: Sequence[Suggestion], found: dict[str, Measured], meaning: str) -> None:
    from ggufmerge.cli.budget import figure
    from ggufmerge.cli.terminal import show_table, tell
    from ggufmerge.text import size

    heads = ["", "type", "size", "bits/weight", "predicted", *(["KL", "same top", "tokens/s"] if found else [])]
    lines = []
    for row in rows:
        line = ["*" if row.on_front else "", row.name, size(row.nbytes), f"{row.bits:.3f}", figure(row.harm)]
        if found:
            it = found.get(row.name)
            line += [f"{it.kl:.4f}", f"{100 * it.same_top:.1f} %", f"{it.speed:.1f}"] if it else ["", "", ""]
        lines.append(tuple(line))
    show_table(tuple(heads), lines, numbers=len(heads) - 2)
    tell(["* nothing smaller, and nothing of the same size, is predicted to do less damage", meaning])
