"""`ggufmerge quantize`: write a GGUF file in another type, as llama-quantize does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.split import MaxSize, MaxTensors, MetadataFirst

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan

HELP = """Write INPUT in another file type, tensor by tensor as llama-quantize would.

[bold]Examples[/bold]

  ggufmerge quantize model-f16.gguf model-q4.gguf Q4_K_M

  ggufmerge quantize model-f16.gguf small.gguf IQ3_XXS --imatrix imatrix.gguf

  ggufmerge quantize model.gguf mine.gguf Q5_K_M --tensor-type ffn_down=Q6_K

  ggufmerge quantize model-f16.gguf mine.gguf --like someone-elses.gguf

The source may be quantized already; tensors that keep their type are copied. TYPE is a llama.cpp file type such as
Q4_K_M, or COPY.
"""

_Texts = list[str] | None


def quantize(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="The GGUF file to read.", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The GGUF file to write.", show_default=False)],
    ftype: Annotated[str | None, typer.Argument(metavar="TYPE", help="File type.", show_default=False)] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="FILE", help="Take the types of this file's tensors instead.")
    ] = None,
    imatrix: Annotated[
        list[Path] | None, typer.Option("--imatrix", metavar="FILE", help="Importance matrix; several add up.")
    ] = None,
    include_weights: Annotated[
        _Texts, typer.Option("--include-weights", metavar="TEXT", help="Use only these entries of the matrix.")
    ] = None,
    exclude_weights: Annotated[
        _Texts, typer.Option("--exclude-weights", metavar="TEXT", help="Do not use these entries of the matrix.")
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors, no mixture.")] = False,
    tensor_type: Annotated[
        _Texts, typer.Option("--tensor-type", metavar="REGEX=TYPE", help="Type of the tensors whose names match.")
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
    ] = None,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Leave output.weight as it is.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads to work with.", show_default="all cores")
    ] = None,
    max_size: MaxSize = None,
    max_tensors: MaxTensors = None,
    metadata_first: MetadataFirst = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show types and sizes and stop.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List every tensor, not one line per kind.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON on standard output.")] = False,
) -> None:
    from ggufmerge.cli.terminal import print_json, show_warnings
    from ggufmerge.engine.quantize import plan_quantize
    from ggufmerge.files.sharded import SplitLimit
    from ggufmerge.quants.mixture import parse_tensor_type

    split = SplitLimit.parse(max_size, max_tensors, metadata_first)
    plan, opened = plan_quantize(
        source,
        ftype,
        like=like,
        imatrix=imatrix or (),
        include_weights=include_weights or (),
        exclude_weights=exclude_weights or (),
        pure=pure,
        tensor_types=[parse_tensor_type(text) for text in tensor_type or ()],
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output_tensor=leave_output_tensor,
    )
    report = None
    show_warnings([*plan.warnings, *(split.warnings(plan.tensors) if split else ())])
    if not dry_run:
        from ggufmerge.cli.progress import run_with_progress

        report = run_with_progress(
            plan, opened, output, overwrite=overwrite, threads=threads, measure=True, split=split
        )
    if json and report is not None:
        print_json(_facts(plan, report))
    elif not json:
        _show(plan, report, every=every)
    if report is None:
        from ggufmerge.cli.outlook import Place

        place = Place(output, split, overwrite, None, threads, measure=True)
        place.of_plan(plan, opened, _facts(plan, report) if json else None)


def _facts(plan: Plan, report: BuildReport | None) -> dict[str, Any]:
    was = {t.name: t for t in plan.tensors}
    return {
        "file_type": str(plan.file_type),
        "output": str(report.output) if report else None,
        "files": [str(path) for path in report.files] if report else [],
        "nbytes": report.nbytes if report else plan.nbytes,
        "bits_per_weight": 8 * plan.nbytes / max(plan.parameters, 1),
        "seconds": report.seconds if report else None,
        "warnings": list(plan.warnings),
        "tensors": [
            {
                "name": name,
                "shape": list(t.shape),
                "type": str(t.type),
                "why": t.why_type,
                "action": t.action,
                "nbytes": t.nbytes,
                "bits_per_weight": t.type.bits_per_weight,
                "relative_error": report.errors.get(name) if report else None,
            }
            for name, t in was.items()
        ],
    }


def _show(plan: Plan, report: BuildReport | None, *, every: bool) -> None:
    from ggufmerge.cli.terminal import kind_of, say, show_notes, show_table
    from ggufmerge.text import count, size

    groups: dict[tuple[str, str, str], list[str]] = {}
    for t in plan.tensors:
        name = t.name if every else kind_of(t.name)
        verb = "copied" if t.action == "copy" else str(t.type)
        groups.setdefault((name, str(t.type), verb), []).append(t.name)
    rows = []
    for (name, kind, verb), names in groups.items():
        # what an interrupted run has written was not measured again
        errors = [report.errors[n] for n in names if n in report.errors] if report else []
        error = "copied" if verb == "copied" else f"{max(errors):.4f}" if errors else "-"
        title = names[0] if len(names) == 1 else f"{len(names)} x {name}"
        bits = next(t.type.bits_per_weight for t in plan.tensors if t.name == names[0])
        rows.append((title, kind, f"{bits:.4g}", error))
    show_table(("tensor", "type", "bits/weight", "relative error"), rows, numbers=2)
    show_notes((t.name, decision) for t in plan.tensors for decision in t.decisions)
    bits = 8 * plan.nbytes / max(plan.parameters, 1)
    total = f"{plan.file_type}, {count(plan.parameters)} parameters, {bits:.2f} bits per weight"
    if report is None:
        say(f"{total}, {size(plan.nbytes)}; nothing was written")
    else:
        say(f"{report.output}: {total}, {size(report.nbytes)}, {report.seconds:.1f} s")
