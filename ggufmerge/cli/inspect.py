"""`ggufmerge inspect`: what a GGUF file holds, from its header alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

SHORT, LONG = 72, 160  # characters that are shown of a longer value: on a terminal, in a pipe
HELP = """Show the metadata and tensors of a GGUF file: a model, adapter or imatrix.

Only the header is read, so it takes no time on a file of any size. Of a split model give the first file.

[bold]Examples[/bold]

  ggufmerge inspect model.gguf

  ggufmerge inspect model.gguf --no-tensors

  ggufmerge inspect model.gguf --json | jq '.metadata["llama.block_count"].value'

  ggufmerge inspect model-00001-of-00003.gguf --json --full
"""

Row = Sequence[str]


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .gguf file.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print all facts as one JSON object.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors/--no-tensors", help="List every tensor.")] = True,
    full: Annotated[bool, typer.Option("--full", help="Print long strings and arrays to their end.")] = False,
) -> None:
    from ggufmerge.files import describe, open_gguf

    with open_gguf(file) as opened:
        facts = describe(opened, full=full)
    if json:
        _print_json(facts, tensors)
        return

    from rich.console import Console

    console = Console()
    show = _print_table if console.is_terminal else _print_plain
    limit = None if full else SHORT if console.is_terminal else LONG
    console.print(_headline(facts), markup=False, highlight=False, soft_wrap=not console.is_terminal)
    show(console, ("key", "type", "value"), _metadata_rows(facts, limit), 0)
    if tensors:
        show(console, ("tensor", "shape", "type", "bytes"), _tensor_rows(facts), 1)
    if facts["types"]:
        show(console, ("type", "tensors", "values", "bytes", "bits/weight", "share"), _type_rows(facts), 5)


def _print_json(facts: dict[str, Any], tensors: bool) -> None:
    import json

    if not tensors:
        del facts["tensors"]
    typer.echo(json.dumps(facts, indent=2))


def _headline(facts: dict[str, Any]) -> str:
    """One line: what the file is, how many weights, how large."""
    kind = [facts["architecture"], facts["type"], facts["file_type"]]
    parts = [" ".join(_printable(word) for word in kind if word) or "no architecture"]
    if facts["tensors"]:
        parts.append(f"{_count(facts['parameters'])} parameters in {len(facts['tensors'])} tensors")
    else:
        parts.append("no tensors")
    parts.append(_bytes(facts["nbytes"]) + (f" in {len(facts['files'])} files" if len(facts["files"]) > 1 else ""))
    if facts["bits_per_weight"]:
        parts.append(f"{facts['bits_per_weight']:.2f} bits per weight")
    return f"{_printable(facts['path'])}: {', '.join(parts)} (GGUF version {facts['version']})"


def _metadata_rows(facts: dict[str, Any], limit: int | None) -> Iterator[Row]:
    for key, entry in facts["metadata"].items():
        kind, value = entry["kind"], entry["value"]
        if kind == "array":
            kind = f"{entry['of']}[{entry['count']}]"
            text = ", ".join(_printable(str(item)) for item in value) + (", ..." if entry.get("shortened") else "")
        else:
            text = _printable(str(value).lower() if isinstance(value, bool) else str(value))
        if limit is not None and len(text) > limit:
            text = text[: limit - 3] + "..."
        yield _printable(key), kind, text


def _tensor_rows(facts: dict[str, Any]) -> Iterator[Row]:
    for tensor in facts["tensors"]:
        shape = " x ".join(str(size) for size in tensor["shape"])
        yield _printable(tensor["name"]), shape, tensor["type"], f"{tensor['nbytes']:,}"


def _type_rows(facts: dict[str, Any]) -> Iterator[Row]:
    total = sum(row["nbytes"] for row in facts["types"].values())
    for name, row in facts["types"].items():
        bits = f"{row['bits_per_weight']:.3f}" if row["bits_per_weight"] is not None else "-"
        share = f"{100 * row['nbytes'] / total:.1f} %" if total else "-"
        yield name, str(row["tensors"]), _count(row["values"]), _bytes(row["nbytes"]), bits, share


def _print_table(console: Any, heads: Row, rows: Iterator[Row], numbers: int) -> None:
    """A table that fits the terminal; the last `numbers` columns are set to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lines = list(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column, head in enumerate(heads):
        right = column >= len(heads) - numbers
        # names stay in one piece, and what stands behind them is folded, unless they are very long
        whole = right or (column == 0 and max((len(line[0]) for line in lines), default=0) <= console.width // 2)
        table.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=whole)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    console.print(table)


def _print_plain(console: Any, heads: Row, rows: Iterator[Row], numbers: int) -> None:
    """The same for files and pipes: one line a row, columns aligned by spaces, nothing folded."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    typer.echo()
    for line in lines:
        cells = [
            cell.rjust(width) if column >= len(heads) - numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())


def _printable(text: str) -> str:
    """Without line breaks and escape sequences, which a file could use to write over the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _count(number: int) -> str:
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            return f"{number / unit:.2f}{letter}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number} bytes"
