"""`ggufmerge bake`: write a model with LoRA adapters applied."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.completion import complete_models
from ggufmerge.cli.options import (
    All,
    Calibration,
    DryRun,
    Imatrix,
    Json,
    Output,
    Overwrite,
    Threads,
    model_argument,
    type_option,
)

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.planning.plan import PlannedTensor
    from ggufmerge.planning.survival import Survival

HELP = """Write BASE with one or several LoRA adapters applied.

[bold]Examples[/bold]

  ggufmerge bake base-Q4_K_M.gguf adapter.gguf -o tuned.gguf

  ggufmerge bake base.gguf style.gguf=0.8 facts.gguf=0.5 -o tuned.gguf --type Q6_K

  ggufmerge bake base.gguf peft-folder/ -o tuned.gguf --dry-run

An adapter is a GGUF file or a PEFT folder (adapter_config.json with adapter_model.safetensors); its strength follows
an equals sign. The base may be quantized, and no full-precision file is made in between. Tensors that no adapter
touches are copied. How much of the adapters' change outlived the rounding to the type of the result is measured and
shown.
"""


class Rounding(StrEnum):
    auto = "auto"
    stochastic = "stochastic"
    nearest = "nearest"


def bake(
    base: Annotated[str, model_argument("BASE", "The model")],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[=STRENGTH]...",
            help="LoRA adapters to apply: GGUF files or PEFT folders.",
            show_default=False,
            autocompletion=complete_models,
        ),
    ],
    output: Output = None,
    out_type: Annotated[
        str | None,
        type_option("Type of the result (ggufmerge types lists them).", show_default="the types of the base"),
    ] = None,
    imatrix: Imatrix = None,
    calibration: Calibration = None,
    rounding: Annotated[
        Rounding | None,
        typer.Option(
            "--rounding",
            metavar="auto|nearest|stochastic",
            help="How to round tensors that keep their type; nearest loses changes smaller than one step of the type.",
            show_default="auto: stochastic where nearest would lose the change",
        ),
    ] = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    every: All = False,
    json: Json = False,
) -> None:
    from ggufmerge.cli.terminal import print_json, show_warnings
    from ggufmerge.engine.bake import plan_bake
    from ggufmerge.planning.survival import advice

    if output is None and not dry_run:
        raise typer.BadParameter("give the file to write: --output tuned.gguf", param_hint="--output")
    plan, opened = plan_bake(
        base,
        adapters,
        out_type=out_type,
        imatrix=imatrix or (),
        calibration=calibration or (),
        rounding=rounding.value if rounding else None,
    )
    report = None
    show_warnings(plan.warnings)
    if not dry_run and output is not None:
        from ggufmerge.cli.progress import run_with_progress

        report = run_with_progress(plan, opened, output, overwrite=overwrite, threads=threads, measure=True)
    if json and report is not None:
        print_json(_facts(plan, report))
    elif not json:
        _show(plan, report, every=every)
    if report is None:
        from ggufmerge.cli.outlook import Place

        place = Place(output, None, overwrite, None, threads, measure=True)
        place.of_plan(plan, opened, _facts(plan, report) if json else None)
    if report is not None:
        show_warnings(advice(report.kept))


def _facts(plan: Plan, report: BuildReport | None) -> dict[str, Any]:
    from ggufmerge.cli.terminal import kept_facts

    survival = report.survival if report else {}
    return {
        "file_type": str(plan.file_type),
        "output": str(report.output) if report else None,
        "files": [str(path) for path in report.files] if report else [],
        "nbytes": report.nbytes if report else plan.nbytes,
        "seconds": report.seconds if report else None,
        "survival": _share(survival),
        "kept": kept_facts(report.kept) if report else [],
        "warnings": [*report.warnings] if report else [*plan.warnings],
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": str(t.type),
                "why": t.why_type,
                "action": t.action,
                "nbytes": t.nbytes,
                "relative_error": report.errors.get(t.name) if report else None,
                "survival": _share({t.name: survival[t.name]}) if t.name in survival else None,
            }
            for t in plan.tensors
        ],
    }


def _show(plan: Plan, report: BuildReport | None, *, every: bool) -> None:
    from ggufmerge.architectures.stacks import kind_of
    from ggufmerge.cli.terminal import show_kept, show_notes, show_table, tell
    from ggufmerge.text import count, size

    groups: dict[tuple[str, str, bool], list[PlannedTensor]] = {}
    for t in plan.tensors:
        groups.setdefault((t.name if every else kind_of(t.name), str(t.type), t.action == "copy"), []).append(t)
    rows = []
    for (kind, type_name, copied), tensors in groups.items():
        errors = [report.errors[t.name] for t in tensors if t.name in report.errors] if report else []
        changed = {t.name: report.survival[t.name] for t in tensors if t.name in report.survival} if report else {}
        title = tensors[0].name if len(tensors) == 1 else f"{len(tensors)} x {kind}"
        error = "copied" if copied else f"{max(errors):.4f}" if errors else "-"
        share = _share(changed)
        rows.append((title, type_name, error, "-" if share is None else _percent(share)))
    show_table(("tensor", "type", "relative error", "change kept"), rows, numbers=2)
    show_notes((t.name, decision) for t in plan.tensors for decision in t.decisions)
    total = f"{plan.file_type}, {count(plan.parameters)} parameters"
    if report is None:
        tell([f"{total}, {size(plan.nbytes)}; nothing was written"])
        return
    tell([f"{report.output}: {total}, {size(report.nbytes)}, {report.seconds:.1f} s"])
    if report.resumed:
        tell([f"{report.resumed} tensors were taken over from an interrupted build"])
    share = _share(report.survival)
    if report.survival and share is None:
        tell(["the adapters cancel each other: nothing was changed"])
    elif share is not None and not report.kept:
        tell([f"{_percent(share)} of the change survived"])
    show_kept(report)


def _share(survival: Mapping[str, Survival]) -> float | None:
    """What is left of the changes of tensors; None when there is no change."""
    from ggufmerge.engine.bake import total_survival

    found = total_survival(survival)
    return found.share if found.energy else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
