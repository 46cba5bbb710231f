"""`ggufmerge build` and `ggufmerge plan`: merge the models of a recipe, or show what would be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge import keys
from ggufmerge.cli.bake import Rounding
from ggufmerge.cli.budget import MaxBits, MaxBytes
from ggufmerge.cli.homes import LlamaCpp, LmStudio, To
from ggufmerge.cli.options import (
    All,
    Calibration,
    Chunk,
    DryRun,
    Imatrix,
    Json,
    Output,
    Overwrite,
    RecipeFile,
    Threads,
    read_recipe,
    type_option,
)
from ggufmerge.cli.outlook import Place, expected, show_forecast, tried
from ggufmerge.cli.push import Card, PushDryRun, PushTo
from ggufmerge.cli.report import Report
from ggufmerge.cli.split import MaxSize, MaxTensors, MetadataFirst
from ggufmerge.cli.try_prompt import TryPrompt

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.recipe import Recipe

BUILD_HELP = """Merge the models of RECIPE into one GGUF file.

[bold]Examples[/bold]

  ggufmerge build recipe.yaml -o merged.gguf

  ggufmerge build recipe.yaml -o merged.gguf --type Q8_0 --overwrite

  ggufmerge build recipe.yaml -o merged.gguf --max-size 3.5G

  ggufmerge build recipe.yaml -o merged.gguf --split-max-size 4G

  ggufmerge build recipe.yaml --ollama merged

  ggufmerge build recipe.yaml --lmstudio me/merged

  ggufmerge build recipe.yaml --to ~/koboldcpp

  ggufmerge build recipe.yaml --to ~/text-generation-webui --type Q4_K_M

  ggufmerge build recipe.yaml -o merged.gguf --to ~/llama/models.ini --llama-cpp

  ggufmerge build recipe.yaml -o merged.gguf --push me/merged-GGUF

  ggufmerge build recipe.yaml -o merged.gguf --report merged.html

  ggufmerge build recipe.yaml -o merged.gguf --try "Why is the sky blue?"

  ggufmerge build recipe.yaml --dry-run

The file appears when it is complete. To continue an interrupted build, give the same command again.
"""

PLAN_HELP = """Show what building RECIPE would do to each tensor, and what it will cost; writes nothing.

[bold]Examples[/bold]

  ggufmerge plan recipe.yaml

  ggufmerge plan recipe.yaml --type Q4_K_M --all

  ggufmerge plan recipe.yaml --json | jq .tensors

Headers are read, and samples of a few tensors, if that takes no more than two seconds, to see how much of the changes
would survive.
"""

_Type = Annotated[
    str | None, type_option("Type of the result, such as Q8_0 (ggufmerge types lists them); wins over the recipe's.")
]
_Rounding = Annotated[
    Rounding | None,
    typer.Option(
        "--rounding",
        metavar="auto|nearest|stochastic",
        help="How to round tensors that keep their type; wins over the recipe's.",
        show_default="auto: stochastic where nearest would lose the change",
    ),
]


class NoiseAware(StrEnum):
    AUTO = "auto"
    OFF = "off"


_NoiseAware = Annotated[
    NoiseAware | None,
    typer.Option(
        "--noise-aware",
        metavar="auto|off",
        help="Whether methods heed the rounding errors of quantized models; wins over the recipe's.",
        show_default="auto",
    ),
]


def build(
    recipe: RecipeFile,
    output: Output = None,
    out_type: _Type = None,
    max_bytes: MaxBytes = None,
    max_bits: MaxBits = None,
    imatrix: Imatrix = None,
    calibration: Calibration = None,
    rounding: _Rounding = None,
    noise_aware: _NoiseAware = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
    chunk: Chunk = None,
    max_size: MaxSize = None,
    max_tensors: MaxTensors = None,
    metadata_first: MetadataFirst = False,
    ollama: Annotated[
        str | None,
        typer.Option("--ollama", metavar="NAME[:TAG]", help="Also add the result to Ollama under this name."),
    ] = None,
    lmstudio: LmStudio = None,
    to: To = None,
    llama_cpp: LlamaCpp = False,
    modelfile: Annotated[
        bool, typer.Option("--modelfile/--no-modelfile", help="Write a Modelfile for Ollama next to the output.")
    ] = True,
    mmproj: Annotated[
        Path | None,
        typer.Option(
            "--mmproj",
            metavar="FILE",
            help="Projector for images or sound, copied to mmproj-OUTPUT.gguf and named in the Modelfile.",
        ),
    ] = None,
    card: Card = None,
    push: PushTo = None,
    push_dry_run: PushDryRun = False,
    report: Report = None,
    try_prompt: TryPrompt = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    from ggufmerge.cli import try_prompt as trial
    from ggufmerge.cli.push import facts_of, show_upload
    from ggufmerge.cli.report import ReportFile
    from ggufmerge.cli.telling import OnTerminal
    from ggufmerge.cli.terminal import print_json, show_build, show_warnings, tell
    from ggufmerge.files.sharded import SplitLimit
    from ggufmerge.planning.survival import advice
    from ggufmerge.sinks import CardSink, HomesSink, HubSink, OllamaSink, ProjectorSink, ReportSink
    from ggufmerge.sinks.homes import home_line
    from ggufmerge.sinks.ollama import check_recipe

    wanted = _wanted(out_type, imatrix, calibration, rounding, noise_aware) | _budget(out_type, max_bytes, max_bits)
    split = SplitLimit.parse(max_size, max_tensors, metadata_first)
    if split and ollama is not None:
        raise typer.BadParameter("Ollama's store takes one file: leave out --split-max-size and the like")
    if mmproj is not None and ollama is not None:
        raise typer.BadParameter("--mmproj needs --output instead of --ollama; ollama create takes the Modelfile then")
    page = ReportFile(report, overwrite=overwrite)
    loaded = read_recipe(recipe)
    for_projector = ProjectorSink(mmproj, None if dry_run else output, overwrite=overwrite)
    for_homes = HomesSink(
        loaded,
        wanted,
        output,
        lmstudio=lmstudio,
        to=to or (),
        llama_cpp=llama_cpp,
        split=split,
        projector=mmproj,
        overwrite=overwrite,
    )
    if dry_run:
        page.check([], [output] if output is not None else [])
        if ollama is not None:
            check_recipe(loaded, ollama, wanted, overwrite=overwrite)
        show_warnings(for_homes.try_out(loaded, wanted))
        place = Place(output, split, overwrite, chunk, threads)
        homes = [home_line(home) for home in for_homes.homes]
        more = for_homes.planned()
        _show_plans(loaded, wanted, every=False, json=json, place=place, must_fit=True, more=more, lines=homes)
        return
    built = for_homes.output
    if built is None and ollama is None:
        name = f"{recipe.stem}.gguf" if isinstance(recipe, Path) and recipe.stem != "-" else "merged.gguf"
        raise typer.BadParameter(f"give the file to write: -o {name}", param_hint="--output")
    if built is None and (push is not None or card is not None or llama_cpp):
        raise typer.BadParameter("--push, --card and --llama-cpp need --output, too", param_hint="--output")
    from ggufmerge.cli.progress import progress_display
    from ggufmerge.engine import build as carry_out

    telling = OnTerminal()
    if push is None and push_dry_run:
        raise typer.BadParameter("needs --push OWNER/NAME", param_hint="--push-dry-run")
    for_card = CardSink(card, overwrite=overwrite) if card is not None else None
    for_hub = HubSink(push, dry_run=push_dry_run, overwrite=overwrite, telling=telling) if push is not None else None
    modelfile = modelfile and output is not None  # no program wants one in its folder
    for_ollama = OllamaSink(
        built, ollama, modelfile=modelfile, overwrite=overwrite, projector=for_projector.path, telling=telling
    )
    others: list[Any] = [for_projector, for_homes, for_ollama, *(s for s in (for_card, for_hub) if s is not None)]

    def facts(plan: Plan, done: BuildReport) -> dict[str, Any]:
        """All of the build and of what was made of it, for JSON and the page."""
        made = {key: value for sink in others if sink is not for_hub for key, value in sink.facts.items()}
        if for_hub is not None and for_hub.upload:
            made["push"] = facts_of(for_hub.upload, for_hub.url)
        return _report(plan, done) | made

    for_page = ReportSink(report, lambda plan, done: page.made(facts(plan, done)), overwrite=overwrite, telling=telling)
    options: dict[str, Any] = {"threads": threads} | ({"chunk": chunk} if chunk else {})
    with for_homes.folders(), progress_display(for_ollama.output) as progress:
        done = carry_out(
            loaded,
            for_ollama.output,
            **wanted,
            overwrite=for_ollama.overwrite,
            split=split,
            sinks=[*others, for_page],
            progress=progress,
            **options,
        )
    show_warnings(advice(done.kept))
    if json:
        assert for_page.plan is not None, "a build checks its sinks first"
        print_json(facts(for_page.plan, done) | trial.asked(done.output, try_prompt))
    else:
        show_build(done, for_ollama.result)
        tell([*for_projector.lines(), *for_homes.lines(), *for_ollama.lines()])
        tell(list(for_card.lines()) if for_card is not None else [])
        if for_hub is not None and for_hub.upload is not None:
            show_upload(for_hub.upload, for_hub.url)
        tell(for_page.lines())
        trial.show(done.output, try_prompt)


def plan(
    recipe: RecipeFile,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file to be written: check whether that is possible."),
    ] = None,
    out_type: _Type = None,
    max_bytes: MaxBytes = None,
    max_bits: MaxBits = None,
    imatrix: Imatrix = None,
    calibration: Calibration = None,
    rounding: _Rounding = None,
    noise_aware: _NoiseAware = None,
    all_tensors: All = False,
    json: Json = False,
) -> None:
    wanted = _wanted(out_type, imatrix, calibration, rounding, noise_aware) | _budget(out_type, max_bytes, max_bits)
    _show_plans(read_recipe(recipe), wanted, every=all_tensors, json=json, place=Place(output))


def _wanted(
    out_type: str | None,
    imatrix: list[Path] | None,
    calibration: list[Path] | None,
    rounding: Rounding | None,
    noise_aware: NoiseAware | None,
) -> Any:
    """What the command line says of the recipe's keys, as `make_plan` takes it."""
    return {
        "out_type": out_type,
        "imatrix": imatrix or (),
        "calibration": calibration or (),
        "rounding": rounding and rounding.value,
        "noise_aware": noise_aware and noise_aware.value,
    }


def _budget(out_type: str | None, max_bytes: str | None, max_bits: str | None) -> dict[str, Any]:
    """The budget of the command line, as `make_plan` takes it."""
    if out_type is not None and (max_bytes or max_bits):
        raise typer.BadParameter("give either a type or a budget (--max-size, --max-bpw)", param_hint="--type")
    return {"max_size": max_bytes, "max_bpw": max_bits}


def _show_plans(
    recipe: Recipe,
    wanted: Any,
    *,
    every: bool,
    json: bool,
    place: Place,
    must_fit: bool = False,
    more: Mapping[str, Any] | None = None,
    lines: Sequence[str] = (),
) -> None:
    """The plan of a recipe, behind those of its stages, and what it will cost; in JSON those stand under "stages".

    wanted: the command line's part in it, as `make_plan` takes it.  must_fit: fail where the build would.
    more: facts beside those of the last plan in JSON; lines: the same in words.
    """
    from ggufmerge.cli.terminal import print_json, say, show_plan, tell
    from ggufmerge.engine.documents import planned_documents

    with planned_documents(recipe, **wanted) as documents:
        forecast = place.forecast(documents)
        plans = documents.plans
        if json:
            *stages, final = (_planned(plan, expected(plan, forecast)) for plan in plans)
            before = {"stages": stages} if stages else {}
            print_json(final | before | dict(more or {}) | tried(forecast) | {"forecast": forecast.to_json()})
        else:
            for number, plan in enumerate(plans):
                if len(plans) > 1:
                    say(*[""][:number])
                    tell([f"{number + 1} of {len(plans)}: {plan.metadata[keys.NAME]}"])
                show_plan(plan, documents.sources[number], every=every, tried=forecast.trial is not None)
            tell(lines)
            show_forecast(forecast, documents.final, place)
        if must_fit:
            place.check(documents)


def _planned(plan: Plan, expectations: Sequence[str]) -> dict[str, Any]:
    """A plan as JSON: as it is, with what its tensors are together, and the reason for a type as elsewhere.

    expectations: those among its own that are to be told.
    """
    facts = plan.to_json()
    del facts["opening"]  # of the files as they are now
    for tensor, planned in zip(facts["tensors"], plan.tensors, strict=True):
        tensor["why"] = tensor.pop("why_type")
        tensor["nbytes"] = planned.nbytes
    del facts["expectations"]
    warnings = [*facts["warnings"], *expectations]
    return facts | {"nbytes": plan.nbytes, "parameters": plan.parameters, "warnings": warnings}


def _report(plan: Plan, report: BuildReport) -> dict[str, Any]:
    from dataclasses import asdict

    from ggufmerge.cli.terminal import kept_facts, survival_facts
    from ggufmerge.planning.survival import advice, total

    survival = report.survival
    whole = total(survival.values())
    facts = {**asdict(report), "output": str(report.output), "files": [str(path) for path in report.files]}
    del facts["errors"]
    kept = [
        {**figures, "sentence": found.line()}
        for figures, found in zip(kept_facts(report.kept), report.kept, strict=True)
    ]
    tensors = []
    for t in plan.tensors:
        told: dict[str, Any] = {"name": t.name, "shape": list(t.shape), "type": str(t.type), "why": t.why_type}
        told |= {"action": t.action, "nbytes": t.nbytes, "decisions": list(t.decisions), "survival": None}
        if t.name in survival:
            told |= (figures := survival_facts(survival[t.name])) | {"survival": figures["share"]}
        tensors.append(told)
    return facts | {
        "method": plan.method,
        "architecture": plan.architecture,
        "sources": [{"path": path, "sha256": digest} for path, digest in report.sources.items()],
        **parents_facts(plan),
        "survival": whole.share if whole.energy else None,
        "kept": kept,
        "tensors": tensors,
        "heeded": [{"name": name, **asdict(one)} for name, found in report.heeded.items() for one in found],
        "notes": [{"name": name, "note": note} for name, note in report.notes],
        "warnings": [*report.warnings, *advice(report.kept)],
        "recipe": plan.recipe,
    }


def parents_facts(plan: Plan) -> dict[str, Any]:
    """The models of a plan and the parameters with which they take part, for JSON.

    settings: every value that a parameter has in some tensor, in the order of the tensors.
    """
    shared: dict[str, list[Any]] = {}
    own: list[dict[str, list[Any]]] = [{} for _ in plan.sources]
    for t in plan.tensors:
        for name, value in t.shared.items():
            if value not in shared.setdefault(name, []):
                shared[name].append(value)
        for name, values in t.models.items():
            for taken, value in zip(t.inputs[len(t.inputs) - len(values) :], values, strict=True):
                if value not in own[taken.source].setdefault(name, []):
                    own[taken.source][name].append(value)
    parents = [
        {
            "label": source.label,
            "name": source.name,
            "path": source.path,
            "adapters": [{"path": path, "strength": strength} for path, strength in source.adapters],
            "type": source.file_type,
            "nbytes": source.nbytes,
            "settings": settings,
        }
        for source, settings in zip(plan.sources, own, strict=True)
    ]
    return {"parents": parents, "settings": shared}
