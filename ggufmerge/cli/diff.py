"""`ggufmerge diff`: how far two models are from each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Compare the weights of two models, tensor by tensor.

[bold]Examples[/bold]

  ggufmerge diff model-f16.gguf model-Q4_K_M.gguf

  ggufmerge diff storyteller.gguf coder.gguf --base base.gguf

  ggufmerge diff base.gguf base.gguf+adapter.gguf --all --json

With a base, cosine and signs are those of the two models' changes of it: how alike two fine-tunes are, and how often
they pull a weight in the same direction.
"""


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A GGUF file, or base.gguf+adapter.gguf.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The model to compare it with.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="FILE", help="The model that both were tuned from.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads to work with.", show_default="all cores")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every tensor, not one line per kind.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON on standard output.")] = False,
) -> None:
    from dataclasses import asdict
    from math import isfinite

    from ggufmerge.cli.terminal import print_json, say, show_table
    from ggufmerge.engine.compare import compare

    result = compare(first, second, base=base, threads=threads)
    if json:
        facts = asdict(result)
        for tensor in facts["tensors"]:
            tensor.update({k: None for k, v in tensor.items() if isinstance(v, float) and not isfinite(v)})
        print_json(facts)
        return
    heads = ["tensor", "difference", "largest", "equal", "cosine", *(["signs"] if base is not None else [])]
    show_table(heads, _rows(result.tensors, base is not None, every), numbers=len(heads) - 1)
    for names, path in ((result.only_first, first), (result.only_second, second)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            say(f"only in {Path(path).name}: {names[0]}{more}")


def _rows(tensors: Any, with_base: bool, every: bool) -> list[list[str]]:
    """A row for each kind of tensor, with the means of its tensors' figures (the largest of the largest)."""
    from ggufmerge.cli.terminal import kind_of

    groups: dict[str, list[Any]] = {}
    for t in tensors:
        groups.setdefault(t.name if every else kind_of(t.name), []).append(t)
    rows = []
    for kind, group in groups.items():
        name = group[0].name if len(group) == 1 else f"{len(group)} x {kind}"
        row = [name, _share(group, "relative"), f"{max(t.largest for t in group):.3g}", _share(group, "equal")]
        row.append(_mean(group, "cosine"))
        if with_base:
            row.append(_share(group, "same_sign"))
        rows.append(row)
    return rows


def _mean(group: list[Any], figure: str) -> str:
    values = [v for t in group if (v := getattr(t, figure)) == v]
    return f"{sum(values) / len(values):.3f}" if values else "-"


def _share(group: list[Any], figure: str) -> str:
    values = [v for t in group if (v := getattr(t, figure)) == v]
    return f"{100 * sum(values) / len(values):.2f} %" if values else "-"
