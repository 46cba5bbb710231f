"""`ggufmerge models`: what is on this machine to be merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ggufmerge.sources.inventory import FoundModel

HELP = """List the models on this machine, as recipes name them, and which can be merged with which.

Looks into Ollama's store, the cache of the Hugging Face Hub, the folders of LM Studio and llama.cpp, and FOLDERs.
Models with the same letter can be merged with each other as they are: architecture, shapes and vocabulary are the same.

[bold]Examples[/bold]

  ggufmerge models

  ggufmerge models ~/gguf /data/models

  ggufmerge models --json | jq '.models[] | select(.architecture == "llama") | .references[0]'
"""


def models(
    folder: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER...", help="Further folders to look into.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all facts as one JSON object.")] = False,
) -> None:
    from ggufmerge.cli import unfinished
    from ggufmerge.cli.terminal import print_json
    from ggufmerge.sources.inventory import families, find_models

    found = find_models(folder or ())
    grouped = families(found)
    left = unfinished.unfinished_builds(folder or ())
    if json:
        print_json(_facts(found, grouped) | {"unfinished": unfinished.facts(left)})
    else:
        _show(found, grouped)
        unfinished.show(left)


def _facts(found: Sequence[FoundModel], grouped: Sequence[Sequence[FoundModel]]) -> dict[str, Any]:
    from dataclasses import asdict

    usable = [
        {k: v for k, v in asdict(model).items() if k != "error"} | {"path": str(model.path)}
        for model in found
        if not model.error
    ]
    failed = [{"reference": model.references[0], "error": model.error} for model in found if model.error]
    groups = [[model.references[0] for model in group] for group in grouped if len(group) > 1]
    return {"models": usable, "can_be_merged": groups, "unreadable": failed}


def _show(found: Sequence[FoundModel], grouped: Sequence[Sequence[FoundModel]]) -> None:
    from ggufmerge.cli.terminal import show_table

    letters = {id(model): _letter(i) for i, group in enumerate(grouped) if len(group) > 1 for model in group}
    usable = [model for group in grouped for model in group] + [m for m in found if not m.family and not m.error]
    if usable:
        heads = ("model", "architecture", "parameters", "type", "size", "with")
        show_table(heads, [_row(model, letters.get(id(model), "")) for model in usable], numbers=0)
    if letters:
        typer.echo("models with the same letter can be merged with each other")
    elif usable:
        typer.echo("no two of these models can be merged as they are")
    failed = [model for model in found if model.error]
    if failed:
        show_table(("cannot be used", "why"), [(model.references[0], model.error) for model in failed])
    if not found:
        typer.echo("no GGUF files were found; give the folders where they are: ggufmerge models FOLDER")


def _row(model: FoundModel, letter: str) -> tuple[str, ...]:
    from ggufmerge.text import count, size

    what = model.architecture if model.kind == "model" else f"{model.architecture} {model.kind}".strip()
    more = f" (also {', '.join(model.references[1:])})" if len(model.references) > 1 else ""
    return model.references[0] + more, what, count(model.parameters), model.file_type, size(model.nbytes), letter


def _letter(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)
