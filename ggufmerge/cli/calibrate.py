"""`ggufmerge calibrate`: statistics of a model's inputs on texts, for quantizing with little loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.options import Json, Overwrite, Threads, model_argument

if TYPE_CHECKING:
    from ggufmerge.evaluation.calibrate import Calibration

HELP = """Read texts with MODEL and write statistics of what its weights are multiplied with, to lose less by rounding.

The file is an importance matrix, as llama-imatrix makes it, and says beside it how inputs go together. Needs the
optional extra: pip install 'ggufmerge\\[llama]'.

[bold]Examples[/bold]

  ggufmerge calibrate merged-f16.gguf -o stats.gguf

  ggufmerge calibrate merged-f16.gguf -o stats.gguf --text builtin --text mine.txt=3

  ggufmerge calibrate model-f16.gguf -o imatrix.gguf --rank 0 --text wiki.txt --tokens 100000

  ggufmerge calibrate chat-q8_0.gguf -o stats.gguf --chat --text dialogues.txt

Texts should be of the kinds that the model is for, and of many kinds: variety helps more than amount. Without --text a
text that comes with the program is read, in twenty languages, with code and mathematics.

A model in F16, BF16 or Q8_0 gives the best statistics. What was interrupted goes on with the same command.
"""


def calibrate(
    model: Annotated[str, model_argument("MODEL", "The model to read with")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file of statistics to write.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE[=WEIGHT]",
            help="A UTF-8 text; give as many as wanted. With a weight its tokens count so many times. The word builtin "
            "means the text that comes with the program.",
            show_default="builtin",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=16, metavar="N", help="Read so many tokens at most, of all texts alike.")
    ] = 16384,
    rank: Annotated[
        int,
        typer.Option(
            "--rank",
            min=0,
            metavar="N",
            help="How exactly to keep how inputs go together; 0 writes an importance matrix alone.",
        ),
    ] = 64,
    full: Annotated[
        bool, typer.Option("--full", help="Keep that whole: large files, and much memory while they are made.")
    ] = False,
    context: Annotated[int, typer.Option("--context", min=16, metavar="N", help="Tokens of a piece of text.")] = 512,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Make conversations of the paragraphs of the texts, in the model's chat format."),
    ] = False,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Also of the weight that gives the probabilities of tokens.")
    ] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    import time

    from ggufmerge.cli.eval_progress import EvalProgress
    from ggufmerge.cli.front import check_name
    from ggufmerge.cli.terminal import complain, print_json, show_warnings
    from ggufmerge.evaluation.calibrate import calibrate as gather
    from ggufmerge.evaluation.checkpoint import checkpoint_path
    from ggufmerge.evaluation.scores import BUILT_IN

    if output is None:
        raise typer.BadParameter("give the file to write: --output stats.gguf", param_hint="--output")
    check_name(output)
    began = time.monotonic()
    try:
        with EvalProgress(1) as progress:
            found = gather(
                model,
                output,
                text or [BUILT_IN],
                rank=rank,
                full=full,
                tokens=tokens,
                context=context,
                chat=chat,
                process_output=process_output,
                threads=threads,
                overwrite=overwrite,
                watcher=progress,
            )
    except KeyboardInterrupt:
        if (kept := checkpoint_path(output)).exists():
            complain("interrupted: give the same command again to go on")
            complain(f"kept: {kept}")
        else:
            complain("interrupted: give the same command again (nothing was finished yet, nothing is kept)")
        raise typer.Exit(1) from None
    show_warnings(found.warnings)
    if json:
        print_json(_facts(found, time.monotonic() - began))
    else:
        _show(found)


def _facts(found: Calibration, seconds: float) -> dict[str, Any]:
    return {
        "output": str(found.path),
        "files": [str(found.path)],
        "nbytes": found.nbytes,
        "seconds": seconds,
        "model": found.model,
        "texts": [{"text": text.name, "tokens": text.tokens, "weight": text.weight} for text in found.texts],
        "tokens": found.tokens,
        "chunks": found.chunks,
        "context": found.context,
        "rank": found.rank,
        "full": found.full,
        "weights": found.weights,
        "inputs": found.inputs,
        "warnings": list(found.warnings),
    }


def _show(found: Calibration) -> None:
    from ggufmerge.cli.terminal import show_table, tell
    from ggufmerge.files.shards import short_names
    from ggufmerge.formats.imatrix import what_it_keeps
    from ggufmerge.text import size

    if len(found.texts) > 1:
        short = short_names(text.name for text in found.texts)
        rows = [(short[text.name], f"{text.tokens:,}", f"{text.weight:g}") for text in found.texts]
        show_table(("text", "tokens", "weight"), rows, numbers=2)
    kept = what_it_keeps(found.weights, found.inputs, found.rank, full=found.full)
    tell([f"{found.path}: {kept}, from {found.tokens:,} tokens, {size(found.nbytes)}"])
    option = "--calibration" if found.rank or found.full else "--imatrix"
    tell([f"use it: ggufmerge quantize IN.gguf OUT.gguf Q4_K_M {option} {found.path}"])
