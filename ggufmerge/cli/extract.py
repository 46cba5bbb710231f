"""`ggufmerge extract-lora`: the difference of a fine-tune to its base as a LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.options import (
    All,
    DryRun,
    Json,
    Overwrite,
    Threads,
    model_argument,
    model_option,
    type_option,
)

if TYPE_CHECKING:
    from ggufmerge.engine.extract import ExtractPlan, ExtractReport, PlannedPair

HELP = """Write the difference of TUNE to its base as a LoRA adapter that llama.cpp loads.

[bold]Examples[/bold]

  ggufmerge extract-lora tune-f16.gguf --base base-f16.gguf -o adapter.gguf

  ggufmerge extract-lora tune.gguf --base base.gguf -o attention.gguf --rank 32 --include attn

  ggufmerge extract-lora base.gguf+a.gguf+b.gguf=0.5 --base base.gguf -o both.gguf --rank 8

Each matrix of the blocks and the output head is reduced to its best approximation of that rank, by a streamed
randomized SVD. How much of each change the adapter holds is shown.
"""


def extract_lora(
    tune: Annotated[str, model_argument("TUNE", "The fine-tune")],
    base: Annotated[str, model_option("--base", "BASE", "The model it was made from")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The adapter to write.")] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, metavar="N", help="Rank of the adapter.")] = 16,
    out_type: Annotated[str, type_option("Type of the adapter: F32, F16 or BF16.")] = "F32",
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="FILTER", help="Take only tensors that match.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="FILTER", help="Leave out tensors that match.")
    ] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Take the token embedding too.")] = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    every: All = False,
    json: Json = False,
) -> None:
    from ggufmerge.cli.progress import progress_display
    from ggufmerge.cli.terminal import print_json, show_warnings
    from ggufmerge.engine.extract import extract, plan_extract
    from ggufmerge.files.writer import check_place

    if output is None and not dry_run:
        raise typer.BadParameter("give the file to write: --output adapter.gguf", param_hint="--output")
    if output is not None:
        check_place(output)
    plan, sources = plan_extract(
        tune,
        base,
        rank=rank,
        out_type=out_type,
        include=include or (),
        exclude=exclude or (),
        embeddings=embeddings,
    )
    report = None
    show_warnings(plan.warnings)
    if not dry_run and output is not None:
        with progress_display(output) as progress:
            report = extract(plan, sources, output, overwrite=overwrite, threads=threads, progress=progress)
    if json:
        print_json(_facts(plan, report))
    else:
        _show(plan, report, every=every)


def _facts(plan: ExtractPlan, report: ExtractReport | None) -> dict[str, Any]:
    from ggufmerge.engine.extract import total

    done = report.tensors if report else {}
    return {
        "rank": plan.rank,
        "output": str(report.output) if report else None,
        "files": [str(report.output)] if report else [],
        "nbytes": report.nbytes if report else plan.nbytes,
        "seconds": report.seconds if report else None,
        "captured": total(list(done.values())).share if done else None,
        "unchanged": plan.unchanged,
        "left_out": plan.left_out,
        "warnings": list(plan.warnings),
        "tensors": [
            {
                "name": pair.name,
                "shape": list(pair.shape),
                "rank": pair.rank,
                "type": str(pair.type),
                "relative_change": done[pair.name].relative_change if done else None,
                "captured": done[pair.name].share if done else None,
            }
            for pair in plan.pairs
        ],
    }


def _show(plan: ExtractPlan, report: ExtractReport | None, *, every: bool) -> None:
    from ggufmerge.architectures.stacks import kind_of
    from ggufmerge.cli.terminal import show_table, tell
    from ggufmerge.engine.extract import total
    from ggufmerge.text import size

    groups: dict[tuple[str, int], list[PlannedPair]] = {}
    for pair in plan.pairs:
        groups.setdefault((pair.name if every else kind_of(pair.name), pair.rank), []).append(pair)
    rows = []
    for (kind, rank), pairs in groups.items():
        title = pairs[0].name if len(pairs) == 1 else f"{len(pairs)} x {kind}"
        found = total([report.tensors[p.name] for p in pairs]) if report else None
        figures = (f"{100 * found.relative_change:.2f} %", f"{100 * found.share:.1f} %") if found else ("-", "-")
        rows.append((title, str(rank), *figures))
    show_table(("tensor", "rank", "change", "captured"), rows, numbers=3)
    same = f"; {plan.unchanged} tensors are the base's" if plan.unchanged else ""
    if report is None:
        tell([f"{len(plan.pairs)} tensors, {plan.type}, {size(plan.nbytes)}{same}; nothing was written"])
        return
    share = total(list(report.tensors.values())).share
    tell([f"{report.output}: {len(plan.pairs)} tensors, {plan.type}, {size(report.nbytes)}{same}"])
    tell([f"{100 * share:.1f} % of the change's energy captured, {report.seconds:.1f} s"])
