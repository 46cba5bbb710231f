"""How facts look on a terminal and in a pipe: tables, sizes, plans, reports."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.engine.plan import PlannedTensor

Row = Sequence[str]


def console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_table(heads: Row, rows: Iterable[Row], numbers: int = 0) -> None:
    """Rows under heads, the last `numbers` columns set to the right: a table that fits the terminal, or, in a file or
    pipe, one line a row with columns aligned by spaces and nothing folded.
    """
    lines = [[printable(cell) for cell in row] for row in rows]
    out = console()
    if out.is_terminal:
        _show_folded(out, heads, lines, numbers)
    else:
        _show_plain(heads, lines, numbers)


def _show_folded(out: Console, heads: Row, lines: Sequence[Row], numbers: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column, head in enumerate(heads):
        right = column >= len(heads) - numbers
        # names stay in one piece, and what stands behind them is folded, unless they are very long
        whole = right or (column == 0 and max((len(line[0]) for line in lines), default=0) <= out.width // 2)
        table.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=whole)
    for line in lines:
        table.add_row(*map(Text, line))
    out.print(table)


def _show_plain(heads: Row, lines: Sequence[Row], numbers: int) -> None:
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    typer.echo()
    for line in [heads, *lines]:
        cells = [
            cell.rjust(width) if column >= len(heads) - numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Without line breaks and escape sequences, which a file could use to write over the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count(number: int) -> str:
    """A number of weights: 134.52M."""
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            return f"{number / unit:.2f}{letter}"
    return str(number)


def size(number: int) -> str:
    """A number of bytes: 98.4 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} bytes"


def show_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)


def show_plan(plan: Plan, *, every: bool = False) -> None:
    """The models, then what happens to each kind of tensor (`every`: to each tensor), then warnings."""
    typer.echo(
        f"{plan.method} of {len(plan.sources)} {plan.architecture} models into one {plan.file_type} file: "
        f"{count(plan.parameters)} parameters, {size(plan.nbytes)}"
    )
    labels = [s.label for s in plan.sources]
    show_table(("", "model", "name", "type", "size"), _source_rows(plan), numbers=1)
    groups: dict[Row, list[str]] = {}
    for tensor in plan.tensors:
        name = tensor.name if every else re.sub(r"^blk\.\d+\.", "blk.*.", tensor.name)
        shape = " x ".join(map(str, tensor.shape))
        groups.setdefault((name, shape, str(tensor.type), _action(tensor, len(labels))), []).append(tensor.name)
    rows = [(f"{len(names)} x {key[0]}" if len(names) > 1 else key[0], *key[1:]) for key, names in groups.items()]
    show_table(("tensor", "shape", "type", "what happens"), rows)
    decisions: dict[str, list[str]] = {}
    for tensor in plan.tensors:
        for decision in tensor.decisions:
            decisions.setdefault(decision, []).append(tensor.name)
    for decision, names in decisions.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        typer.echo(f"note: {names[0]}{more}: {printable(decision)}")
    show_warnings(plan.warnings)


def _source_rows(plan: Plan) -> Iterable[Row]:
    for i, source in enumerate(plan.sources):
        yield str(i), source.label, source.name, source.file_type, size(source.nbytes)


def _action(tensor: PlannedTensor, models: int) -> str:
    """What happens to a tensor, in a few words."""
    origins = " ".join(str(i.source) for i in tensor.inputs)
    moved = [i.tensor for i in tensor.inputs if i.tensor != tensor.name]
    if tensor.action != "merge":
        verb = {"copy": "copied from", "convert": "converted from"}[tensor.action]
        return f"{verb} {origins}" + (f" {moved[0]}" if moved else "")
    given = {k: values for k, values in tensor.models.items() if any(v is not None for v in values)}
    per_model = [f"{k} {' '.join(_folded(values))}" for k, values in given.items()]
    shared = [f"{k} {_value(v)}" for k, v in tensor.shared.items() if v is not None]
    who = "" if len(tensor.inputs) == models else f" of {origins}"
    return f"{tensor.method}{who}: " + ", ".join(per_model + shared)


def _folded(values: Sequence[float | None]) -> list[str]:
    shown = values[:1] if len(set(values)) == 1 else values
    return [_value(v) for v in shown]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_build(report: BuildReport, plan: Plan) -> None:
    """What a build did, in a few lines."""
    made = [("merged", report.merged), ("converted", report.converted), ("copied byte for byte", report.copied)]
    what = ", ".join(f"{n} {verb}" for verb, n in made if n)
    typer.echo(f"{report.output}: {plan.file_type}, {count(plan.parameters)} parameters, {size(report.nbytes)}")
    rate = sum(s.nbytes for s in plan.sources) / max(report.seconds, 1e-9) / 1e6
    typer.echo(f"{len(plan.tensors)} tensors: {what}; {report.seconds:.1f} s, {rate:.0f} MB/s of sources")
    if report.resumed:
        typer.echo(f"{report.resumed} tensors were taken over from an interrupted build")
    grouped: dict[str, list[str]] = {}
    for name, note in report.notes:
        grouped.setdefault(re.sub(r"[-+]?\d+\.\d+", "#", note), []).append(name)
    for note, names in grouped.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        typer.echo(f"note: {names[0]}{more}: {printable(note)}")
