"""`ggufmerge inspect`: what a GGUF file holds, from its header alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from ggufmerge.cli.options import All, Json, model_argument

SHORT, LONG = 72, 160  # characters that are shown of a longer value: on a terminal, in a pipe
HELP = """Show the metadata and tensors of a GGUF file: a model, adapter or imatrix.

Only the header is read, so it takes no time on a file of any size. Of a split model give the first file.

[bold]Examples[/bold]

  ggufmerge inspect model.gguf

  ggufmerge inspect model.gguf --all

  ggufmerge inspect model.gguf --json | jq '.metadata["llama.block_count"].value'

  ggufmerge inspect model.gguf --memory ctx=8192,kv=q8_0

  ggufmerge inspect model-00001-of-00003.gguf --json --full
"""


def inspect(
    file: Annotated[str, model_argument("FILE", "A model, adapter or imatrix")],
    every: All = False,
    tensors: Annotated[
        bool | None,
        typer.Option(
            "--tensors/--no-tensors", help="The same; --no-tensors also leaves them out of --json.", hidden=True
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print long strings and arrays to their end.")] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="ctx=N[,kv=TYPE]",
            help="What it needs in llama.cpp with a context of N tokens, part by part.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    from ggufmerge.cli.terminal import console, print_json, say, show_table, tell
    from ggufmerge.places.inspect import inspect as facts_of
    from ggufmerge.planning.fits import parse_use
    from ggufmerge.types import TensorType

    context, cache_type = (None, TensorType.F16) if memory is None else parse_use(memory)
    facts = facts_of(file, full=full, context=context, cache_type=cache_type)
    if json:
        print_json(facts if tensors is not False else {key: value for key, value in facts.items() if key != "tensors"})
        return
    tell([_headline(facts), *([facts["layout"]] if facts["layout"] else []), *_memory_lines(facts["memory"])])
    if facts["statistics"]:
        tell([_statistics(facts["statistics"])])
    if memory is not None and facts["memory"]:
        show_table(("memory for", "bytes"), _memory_rows(facts["memory"]), numbers=1)
    limit = None if full else SHORT if console().is_terminal else LONG
    if facts["types"]:
        show_table(("type", "tensors", "values", "bytes", "bits/weight", "share"), _type_rows(facts), numbers=5)
    show_table(("key", "type", "value"), _metadata_rows(facts, limit))
    if not facts["tensors"]:
        return
    if every if tensors is None else tensors:
        show_table(("tensor", "shape", "type", "bytes"), _tensor_rows(facts), numbers=1)
    else:
        say(f"{len(facts['tensors'])} tensors: --all lists them")


def _headline(facts: dict[str, Any]) -> str:
    """One line: what the file is, how many weights, how large."""
    from ggufmerge.files.shards import model_name
    from ggufmerge.text import count, size

    kind = [word for word in (facts["architecture"], facts["type"], facts["file_type"]) if word]
    parts = [" ".join(kind) or "no architecture", "no tensors", size(facts["nbytes"])]
    if facts["tensors"]:
        parts[1] = f"{count(facts['parameters'])} parameters in {len(facts['tensors'])} tensors"
    if facts["bits_per_weight"]:
        parts.append(f"{facts['bits_per_weight']:.2f} bits per weight")
    name = model_name(facts["path"], len(facts["shards"]))
    return f"{name}: {', '.join(parts)} (GGUF version {facts['gguf_version']})"


def _statistics(found: dict[str, Any]) -> str:
    """What the numbers of an importance matrix are of."""
    from ggufmerge.formats.imatrix import what_it_keeps
    from ggufmerge.text import first_few

    kept = what_it_keeps(found["weights"], found["inputs"], found["rank"], full=found["full"])
    texts = f" of {first_few(found['texts'], 4)}" if found["texts"] else ""
    return f"{kept}, from about {found['tokens']:,} tokens{texts}, in pieces of {found['chunk_size']}"


def _memory_lines(need: dict[str, Any] | None) -> list[str]:
    from ggufmerge.text import size

    if need is None:
        return []
    kind = "" if need["cache_type"] == "F16" else f", keys and values in {need['cache_type']}"
    at_most = "" if need["is_known"] else " at most: its architecture is not known"
    return [f"runs in about {size(need['total'])} with a context of {need['context']}{kind}{at_most}"]


def _memory_rows(need: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    parts = {
        "weights": "weights",
        "cache": "keys and values",
        "state": "state of recurrent layers",
        "compute": "computing, at most",
        "output": "output",
        "total": "all of it",
    }
    for key, words in parts.items():
        yield words, f"{need[key]:,}"


def _metadata_rows(facts: dict[str, Any], limit: int | None) -> Iterator[tuple[str, ...]]:
    for key, entry in facts["metadata"].items():
        kind, value = entry["kind"], entry["value"]
        if kind == "array":
            kind = f"{entry['of']}[{entry['count']}]"
            text = ", ".join(map(_word, value)) + (", ..." if entry.get("shortened") else "")
        else:
            text = _word(value)
        if limit is not None and len(text) > limit:
            text = text[: limit - 3] + "..."
        yield key, kind, text


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tensor_rows(facts: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for tensor in facts["tensors"]:
        yield tensor["name"], " x ".join(map(str, tensor["shape"])), tensor["type"], f"{tensor['nbytes']:,}"


def _type_rows(facts: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    from ggufmerge.text import count, size

    total = sum(row["nbytes"] for row in facts["types"].values())
    for name, row in facts["types"].items():
        bits = "-" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.3f}"
        share = f"{100 * row['nbytes'] / total:.1f} %" if total else "-"
        yield name, str(row["tensors"]), count(row["values"]), size(row["nbytes"]), bits, share
