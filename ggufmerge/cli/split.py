"""`ggufmerge split` and `ggufmerge join`: one GGUF file into shards, and shards into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ggufmerge.cli.options import DryRun, Json, Overwrite, Threads

SPLIT_HELP = """Cut INPUT into shards OUTPUT-00001-of-0000N.gguf, as llama-gguf-split does.

[bold]Examples[/bold]

  ggufmerge split model.gguf model --split-max-size 4G

  ggufmerge split model.gguf shards/model --split-max-tensors 64

  ggufmerge split model-00001-of-00008.gguf larger --split-max-size 20G

Tensors keep their bytes, which are read back and compared. Without a limit a shard holds 128 tensors.
"""

JOIN_HELP = """Write the shards of a model as one file; FIRST is the first of them.

[bold]Examples[/bold]

  ggufmerge join model-00001-of-00003.gguf model.gguf

This puts the pieces of one model together; to merge the weights of several models see `ggufmerge build`.
"""

MaxSize = Annotated[
    str | None,
    typer.Option("--split-max-size", metavar="N(M|G)", help="Largest size of a shard, in powers of 1000: 500M, 4G."),
]
MaxTensors = Annotated[
    int | None, typer.Option("--split-max-tensors", min=1, metavar="N", help="Largest number of tensors of a shard.")
]
MetadataFirst = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="Put only metadata into the first shard, no tensors.")
]


def split(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A GGUF file.", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Prefix of the shard names.", show_default=False)],
    max_size: MaxSize = None,
    max_tensors: MaxTensors = None,
    metadata_first: MetadataFirst = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    from ggufmerge.cli.terminal import print_json, show_table, show_warnings, tell
    from ggufmerge.files import open_gguf
    from ggufmerge.files.sharded import DEFAULT_MAX_TENSORS, SplitLimit
    from ggufmerge.files.split import split_gguf, tensor_infos
    from ggufmerge.places.references import find
    from ggufmerge.text import size

    if max_size is None and max_tensors is None:
        max_tensors = DEFAULT_MAX_TENSORS
    limit = SplitLimit.parse(max_size, max_tensors, metadata_first)
    assert limit is not None
    source = find(str(source)).path
    with open_gguf(source) as opened:
        infos = tensor_infos(opened)
    parts, paths = limit.cut(infos), limit.paths(output, infos)
    show_warnings(limit.warnings(infos))
    if not dry_run:
        from ggufmerge.cli.progress import ProgressDisplay
        from ggufmerge.cli.terminal import console

        progress = ProgressDisplay(console(stderr=True))
        split_gguf(source, output, limit, overwrite=overwrite, threads=threads, progress=progress)
    shards = [(str(path), len(part), sum(t.nbytes for t in part)) for path, part in zip(paths, parts, strict=True)]
    if json:
        facts = [dict(zip(("path", "tensor_count", "nbytes"), shard, strict=True)) for shard in shards]
        written = [] if dry_run else [str(path) for path in paths]
        output_facts = {"output": written[0] if written else None, "files": written}
        print_json({"shards": facts, "nbytes": sum(shard[2] for shard in shards)} | output_facts)
        return
    rows = [(file, str(tensors), size(nbytes)) for file, tensors, nbytes in shards]
    show_table(("file", "tensors", "data"), rows, numbers=2)
    count = f"{len(shards)} shard{'s' * (len(shards) > 1)}"
    total = f"{sum(part[1] for part in shards)} tensors, {size(sum(part[2] for part in shards))}"
    if dry_run:
        tell([f"{count} with {total}; nothing was written"])
        return
    tell([f"{count} with {total}: give {paths[0]} wherever a model is asked for, the others are found beside it"], "  ")


def join(
    given: Annotated[
        list[Path],
        typer.Argument(metavar="FIRST...", help="The first shard, or all of them in any order.", show_default=False),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The GGUF file to write.", show_default=False)],
    overwrite: Overwrite = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    from ggufmerge.cli.front import check_name
    from ggufmerge.cli.progress import ProgressDisplay
    from ggufmerge.cli.terminal import console, print_json, tell
    from ggufmerge.files import open_gguf
    from ggufmerge.files.shards import first_of
    from ggufmerge.files.split import join_gguf
    from ggufmerge.places.references import find
    from ggufmerge.text import size

    first = first_of([find(str(path)).path for path in given], output)
    check_name(output)
    with open_gguf(first) as opened:
        shards, tensors = [str(path) for path in opened.paths], len(opened.tensors)
    progress = ProgressDisplay(console(stderr=True))
    join_gguf(first, output, overwrite=overwrite, threads=threads, progress=progress)
    nbytes = output.stat().st_size
    if json:
        parts = [{"path": path} for path in shards]
        output_facts = {"output": str(output), "files": [str(output)]}
        print_json(output_facts | {"tensor_count": tensors, "nbytes": nbytes, "shards": parts})
    else:
        tell([f"{output}: {tensors} tensors of {len(shards)} shards, {size(nbytes)}"])
