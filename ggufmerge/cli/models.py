"""`ggufmerge models`: what is on this machine to be merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.options import Json

if TYPE_CHECKING:
    from ggufmerge.places.inventory import FoundModel

HELP = """List the models on this machine, as recipes name them, and which can be merged with which.

Looks into Ollama's store, the cache of the Hugging Face Hub, the folders of LM Studio and llama.cpp (also those that
LLAMA_ARG_MODELS_DIR and LLAMA_ARG_MODELS_PRESET name), ~/koboldcpp, ~/text-generation-webui, and FOLDERs; without
FOLDER, also into the working folder if there are GGUF files in it.
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
    json: Json = False,
) -> None:
    from ggufmerge.cli import unfinished
    from ggufmerge.cli.terminal import print_json
    from ggufmerge.places.inventory import families, find_models, fitting_adapters

    here = [Path()] if any(Path().glob("*.gguf")) else []
    found = find_models(folder or here)
    grouped, adapters = families(found), fitting_adapters(found)
    left = unfinished.unfinished_builds(folder or ())
    if json:
        print_json(_facts(found, grouped, adapters) | {"unfinished": unfinished.facts(left)})
    else:
        _show(found, grouped, adapters)
        unfinished.show(left)


def _facts(
    found: Sequence[FoundModel], grouped: Sequence[Sequence[FoundModel]], adapters: Mapping[str, Sequence[FoundModel]]
) -> dict[str, Any]:
    from dataclasses import asdict

    usable = [
        {k: v for k, v in asdict(model).items() if k != "error"} | {"path": str(model.path)}
        for model in found
        if not model.error
    ]
    failed = [{"reference": model.references[0], "error": model.error} for model in found if model.error]
    groups = [[model.references[0] for model in group] for group in grouped if len(group) > 1]
    fitting = [
        {"models": [m.references[0] for m in group], "adapters": [a.references[0] for a in adapters[group[0].family]]}
        for group in grouped
        if group[0].family in adapters
    ]
    return {"models": usable, "can_be_merged": groups, "can_be_applied": fitting, "unreadable": failed}


def _show(
    found: Sequence[FoundModel], grouped: Sequence[Sequence[FoundModel]], adapters: Mapping[str, Sequence[FoundModel]]
) -> None:
    from ggufmerge.cli.terminal import console, say, show_table, tell

    letters: dict[int, str] = {}
    for i, group in enumerate(grouped):
        fitting = adapters.get(group[0].family, ())
        if len(group) > 1 or fitting:
            letters |= {id(model): _letter(i) for model in group}
            for adapter in fitting:  # one may fit several families
                letters[id(adapter)] = ", ".join(filter(None, (letters.get(id(adapter)), _letter(i))))
    usable = [model for group in grouped for model in group] + [m for m in found if not m.family and not m.error]
    rows = [_row(model, letters.get(id(model), "")) for model in usable]
    if console().is_terminal:
        _show_blocks(rows)
    elif rows:
        show_table(("model", "kept by", "architecture", "parameters", "type", "size", "notes", "with"), rows)
    if letters:
        say("models with the same letter can be merged with each other")
        if adapters:
            say("adapters can be applied to the models that have their letter")
    elif usable:
        say("no two of these models can be merged as they are")
    if not found:
        tell(["no GGUF files were found; give the folders where they are: ggufmerge models FOLDER"])
    failed = [model for model in found if model.error]
    if failed:
        show_table(("cannot be used", "why"), [(model.references[0], model.error) for model in failed])


def _show_blocks(rows: Sequence[tuple[str, ...]]) -> None:
    """Two lines a model, since names are long: the letter and the name, and below it what it is."""
    from ggufmerge.cli.terminal import say

    width = max((len(row[-1]) for row in rows), default=0)
    for name, keeper, what, parameters, file_type, nbytes, notes, letter in rows:
        facts = ", ".join(fact for fact in (what, f"{parameters} parameters", file_type, nbytes) if fact)
        say(f"{letter:{width}}  {name}", " " * (width + 4) + "; ".join(part for part in (keeper, facts, notes) if part))


def _row(model: FoundModel, letter: str) -> tuple[str, ...]:
    from ggufmerge.files.shards import ShardName
    from ggufmerge.text import count, size

    what = model.architecture if model.kind == "model" else f"{model.architecture} {model.kind}".strip()
    more = f" (also {', '.join(model.references[1:])})" if len(model.references) > 1 else ""
    shard = ShardName.parse(model.path.name) if model.path else None
    notes = [f"{shard.count} shards"] if shard else []
    notes += [f"needs {need}" for need in model.needs] + ([f"has {model.projector}"] if model.projector else [])
    name, parameters = model.references[0] + more, count(model.parameters)
    return name, model.keeper, what, parameters, model.file_type, size(model.nbytes), ", ".join(notes), letter


def _letter(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)
