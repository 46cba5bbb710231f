"""`ggufmerge build` and `ggufmerge plan`: merge the models of a recipe, or show what would be done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

BUILD_HELP = """Merge the models of RECIPE into one GGUF file.

[bold]Examples[/bold]

  ggufmerge build recipe.yaml -o merged.gguf

  ggufmerge build recipe.yaml -o merged.gguf --type Q8_0 --overwrite

  ggufmerge build recipe.yaml --dry-run

The file appears when it is complete. An interrupted build goes on where it was when the same command is given again.
"""

PLAN_HELP = """Show what building RECIPE would do to each tensor; reads headers only.

[bold]Examples[/bold]

  ggufmerge plan recipe.yaml

  ggufmerge plan recipe.yaml --type Q4_K_M --all

  ggufmerge plan recipe.yaml --json | jq .tensors
"""

_Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in mergekit's YAML.", show_default=False)]
_Type = Annotated[
    str | None,
    typer.Option(
        "--type", "-t", metavar="TYPE", help="File type of the result, such as Q8_0; wins over the recipe's out_type."
    ),
]
_Imatrix = Annotated[
    list[Path] | None,
    typer.Option("--imatrix", metavar="FILE", help="Importance matrix to quantize with; several add up."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on standard output.")]
_All = Annotated[bool, typer.Option("--all", help="List every tensor, not one line per kind.")]


def build(
    recipe: _Recipe,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The GGUF file to write.")
    ] = None,
    out_type: _Type = None,
    imatrix: _Imatrix = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads to work with.", show_default="all cores")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk",
            min=1024,
            metavar="VALUES",
            help="Values of a tensor that a thread works on at a time; memory grows with it.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    json: _Json = False,
) -> None:
    from ggufmerge.cli.terminal import print_json, show_build, show_plan, show_warnings
    from ggufmerge.engine import make_plan
    from ggufmerge.engine.checks import check_output
    from ggufmerge.recipe import load_recipe

    if output is None and not dry_run:
        raise typer.BadParameter("give the file to write: --output merged.gguf", param_hint="--output")
    plan, opened = make_plan(load_recipe(recipe), out_type=out_type, imatrix=imatrix or ())
    if output is not None:
        check_output(output, opened.sources, plan.nbytes, overwrite=overwrite)
    if dry_run or output is None:
        print_json(plan.to_json()) if json else show_plan(plan)
        return
    from ggufmerge.cli.progress import run_with_progress

    show_warnings(plan.warnings)
    options = {"chunk": chunk} if chunk else {}
    report = run_with_progress(plan, opened, output, overwrite=overwrite, threads=threads, **options)
    if json:
        print_json(_report(report))
    else:
        show_build(report, plan)


def plan(
    recipe: _Recipe, out_type: _Type = None, imatrix: _Imatrix = None, all_tensors: _All = False, json: _Json = False
) -> None:
    from ggufmerge.cli.terminal import print_json, show_plan
    from ggufmerge.engine import make_plan
    from ggufmerge.recipe import load_recipe

    planned, _ = make_plan(load_recipe(recipe), out_type=out_type, imatrix=imatrix or ())
    print_json(planned.to_json()) if json else show_plan(planned, every=all_tensors)


def _report(report: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(report), "output": str(report.output)}
