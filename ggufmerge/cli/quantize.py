"""`ggufmerge quantize`: write a GGUF file in another type, as llama-quantize does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.budget import FitsMemory, MaxBits, MaxBytes, SaveTypes
from ggufmerge.cli.completion import complete_tensor_types, complete_types_and_files
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
from ggufmerge.cli.report import Report
from ggufmerge.cli.split import MaxSize, MaxTensors, MetadataFirst
from ggufmerge.cli.suggest import Measure, Suggest

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.files.sharded import SplitLimit
    from ggufmerge.planning.fitting import Market

HELP = """Write INPUT in another file type, tensor by tensor as llama-quantize would.

[bold]Examples[/bold]

  ggufmerge quantize model-f16.gguf model-q4.gguf Q4_K_M

  ggufmerge quantize model-f16.gguf small.gguf IQ3_XXS --imatrix imatrix.gguf

  ggufmerge quantize model.gguf mine.gguf Q5_K_M --tensor-type ffn_down=Q6_K

  ggufmerge quantize model-f16.gguf mine.gguf --like someone-elses.gguf

  ggufmerge quantize model-f16.gguf small.gguf --max-size 3.5G --imatrix imatrix.gguf

  ggufmerge quantize model-f16.gguf --suggest --imatrix imatrix.gguf

  ggufmerge quantize model-f16.gguf small.gguf Q4_K_M --report small.html

  ggufmerge quantize model-f16.gguf Q4_K_M

TYPE is one that ggufmerge types lists, its number (15 is Q4_K_M), or COPY. Without OUTPUT the result gets the
name and folder of INPUT, with the type at the end: model-Q4_K_M.gguf. The source may be quantized already; tensors that
keep their type are copied.
"""

_Texts = list[str] | None


def quantize(
    source: Annotated[str, model_argument("INPUT", "The model to read")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OUTPUT] TYPE [THREADS]",
            help="As for llama-quantize: the file to write, its type, threads to work with.",
            show_default=False,
            autocompletion=complete_types_and_files,
        ),
    ] = None,
    output: Output = None,
    out_type: Annotated[str | None, type_option("Type of the result.")] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="FILE", help="Take the types of this file's tensors instead.")
    ] = None,
    imatrix: Imatrix = None,
    calibration: Calibration = None,
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
    tensor_type_file: Annotated[
        Path | None,
        typer.Option(
            "--tensor-type-file", metavar="FILE", help="A text file of such pairs, separated by blanks or line breaks."
        ),
    ] = None,
    output_tensor_type: Annotated[
        str | None,
        typer.Option(
            "--output-tensor-type",
            metavar="TYPE",
            help="Type of output.weight.",
            autocompletion=complete_tensor_types,
        ),
    ] = None,
    token_embedding_type: Annotated[
        str | None,
        typer.Option(
            "--token-embedding-type",
            metavar="TYPE",
            help="Type of token_embd.weight.",
            autocompletion=complete_tensor_types,
        ),
    ] = None,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Leave output.weight as it is.")
    ] = False,
    max_bytes: MaxBytes = None,
    max_bits: MaxBits = None,
    memory: FitsMemory = None,
    save: SaveTypes = None,
    suggest: Suggest = False,
    measure: Measure = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    max_size: MaxSize = None,
    max_tensors: MaxTensors = None,
    metadata_first: MetadataFirst = False,
    keep_split: Annotated[bool, typer.Option("--keep-split", help="Write as many shards as INPUT has.")] = False,
    report: Report = None,
    dry_run: DryRun = False,
    every: All = False,
    json: Json = False,
) -> None:
    from ggufmerge.cli import budget
    from ggufmerge.cli.front import check_name
    from ggufmerge.cli.report import ReportFile
    from ggufmerge.cli.suggest import opened_bench, probed
    from ggufmerge.cli.suggest import suggest as show_suggestions
    from ggufmerge.cli.terminal import print_json, show_warnings
    from ggufmerge.engine.quantize import plan_quantize
    from ggufmerge.files.sharded import SplitLimit
    from ggufmerge.planning.checks import output_files
    from ggufmerge.quants.mixture import parse_tensor_type

    page = ReportFile(report, overwrite=overwrite)
    page.check([])
    if memory is not None and max_bytes is not None:
        raise typer.BadParameter("give this or --max-size", param_hint="--fits")
    most = max_bytes if memory is None else budget.size_that_fits(source, memory)
    statistics = [*(imatrix or ()), *(calibration or ())]  # to judge and to try types by
    fits = budget.chooser(most, max_bits, save, overwrite=overwrite)
    if suggest:
        if words or out_type or like or output:
            raise typer.BadParameter(
                "shows what there is and writes nothing: give the model alone", param_hint="--suggest"
            )
        show_suggestions(
            source,
            imatrix=statistics,
            budget=fits.budget if fits else None,
            measure=measure,
            threads=threads,
            page=page,
            json=json,
        )
        return
    if fits is not None and any(map(_is_type, [*(words or [])[:2], *([out_type] if out_type else [])])):
        raise typer.BadParameter("give either a type or a budget", param_hint="TYPE")
    if measure and fits is None:
        raise typer.BadParameter("needs --suggest, --max-size or --max-bpw", param_hint="--measure")
    wanted = _wanted(words or [], output, out_type, threads, like=like is not None or fits is not None)
    split = SplitLimit.parse(max_size, max_tensors, metadata_first)
    if wanted.output is not None:
        check_name(wanted.output, shards=split is not None or keep_split)
    if keep_split:
        if split is not None:
            raise typer.BadParameter("give either this or --split-max-size and the like", param_hint="--keep-split")
        split = _shards_of(source)
    overrides = [*(tensor_type or ()), *(_pairs(tensor_type_file) if tensor_type_file else ())]
    if fits is not None and measure:

        def look(found: Market) -> Market:
            with opened_bench(source, statistics, wanted.threads) as bench:
                return probed(bench, found)

        fits.look = look
    plan, opened = plan_quantize(
        source,
        wanted.type,
        like=like,
        imatrix=imatrix or (),
        calibration=calibration or (),
        include_weights=include_weights or (),
        exclude_weights=exclude_weights or (),
        pure=pure,
        tensor_types=[parse_tensor_type(text) for text in overrides],
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output_tensor=leave_output_tensor,
        keep_split=keep_split,
        fitted=fits,
        threads=wanted.threads,
    )
    fitting = fits.fitting if fits else None
    target = wanted.output or _beside(source, str(wanted.type or plan.file_type))
    if page.path is not None:
        page.check(opened.files(), output_files(plan, target, split))
    done = None
    noted = budget.without_statistics(fitting.market) if fitting else []
    show_warnings([*plan.warnings, *noted, *(split.warnings(plan.tensors) if split else ())])
    if not dry_run:
        from ggufmerge.cli.progress import run_with_progress

        done = run_with_progress(
            plan, opened, target, overwrite=overwrite, threads=wanted.threads, measure=True, split=split
        )
    facts = budget.merged(_facts(plan, done), fitting)
    if json and done is not None:
        print_json(facts)
    elif not json:
        if fitting:
            budget.show(fitting)
        _show(plan, done, every=every)
    if fitting:
        budget.save_types(save, fitting, overwrite=overwrite, quiet=json)
    if done is not None:
        page.write(facts, json=json)
    else:
        from ggufmerge.cli.outlook import Place

        place = Place(output, split, overwrite, None, threads, measure=True)
        place.of_plan(plan, opened, facts if json else None)


@dataclass(frozen=True)
class _Wanted:
    output: Path | None
    type: str | None
    threads: int | None


def _wanted(
    words: Sequence[str], output: Path | None, out_type: str | None, threads: int | None, *, like: bool
) -> _Wanted:
    """What the words behind the input say, by llama-quantize's rule: a first word that is a type is the type, and the
    output is left out. BadParameter for words that have no place.
    """
    rest = list(words)
    kind = _type(out_type) if out_type is not None else None
    asked = kind is None and not like  # the words have to name a type
    if asked and rest and (_is_type(rest[0]) or output is not None or (len(rest) == 1 and _is_no_file(rest[0]))):
        kind = _type(rest.pop(0))
        if rest and output is None and rest[0].lower().endswith(".gguf"):
            output = Path(rest.pop(0))
    elif rest and output is None:
        output = Path(rest.pop(0))
        if asked and rest:
            kind = _type(rest.pop(0))
    if rest and threads is None and rest[0].isascii() and rest[0].isdigit() and 0 < len(rest[0]) < 6:
        threads = max(int(rest.pop(0)), 1)
    if rest:
        raise typer.BadParameter(f'there is no place for "{rest[0]}" after the type: {_USAGE}')
    if kind is None and not like:
        raise typer.BadParameter(
            f"which type? {_USAGE}, --like FILE or --max-size SIZE; ggufmerge types lists the types"
        )
    return _Wanted(output, kind, threads)


_USAGE = "ggufmerge quantize INPUT OUTPUT Q4_K_M"


def _is_type(word: str) -> bool:
    from ggufmerge.errors import GgufmergeError

    try:
        _type(word)
    except GgufmergeError:
        return False
    return True


def _is_no_file(word: str) -> bool:
    """Whether a word that stands where an output or a type may stand can only be meant as a type."""
    return not any(letter in word for letter in "./\\")


def _type(word: str) -> str:
    """The name of a type that is given by its name or its number."""
    from ggufmerge.types import FileType

    return "COPY" if word.upper() == "COPY" else str(FileType.numbered(word) or FileType.parse(word))


def _beside(source: str, kind: str) -> Path:
    """Where the result stands when nobody says: beside the input under its name, with the new type in place of the
    old one; that of a model with a name (ollama:...) in the current folder.
    """
    from ggufmerge.files import ShardName
    from ggufmerge.places.schemes import is_scheme

    scheme, colon, name = source.partition(":")
    if colon and is_scheme(scheme):
        folder, stem = Path(), name.rpartition("/")[2].removesuffix(".gguf").replace(":", "-").replace("@", "-")
    else:
        path = Path(source)
        shard = ShardName.parse(path.name)
        folder, stem = path.parent, shard.prefix if shard is not None else path.stem
    base, dash, last = stem.rpartition("-") if "-" in stem else stem.rpartition(".")
    if dash and _is_type(last) and not last.isdigit():
        stem = base
    return folder / f"{stem}-{'copy' if kind == 'COPY' else kind}.gguf"


def _shards_of(source: str) -> SplitLimit | None:
    """A limit that cuts the result as the input is cut; None when that is one file."""
    from ggufmerge.files import open_gguf
    from ggufmerge.files.sharded import SameShards
    from ggufmerge.places.references import find

    with open_gguf(find(source).path) as opened:
        counts = opened.shard_counts
    return SameShards(counts=tuple(counts)) if len(counts) > 1 else None


def _pairs(path: Path) -> list[str]:
    """NAME=TYPE pairs of a text file."""
    from ggufmerge.errors import GgufmergeError
    from ggufmerge.files.small import read_small

    try:
        return read_small(path, 1 << 20).decode().split()
    except UnicodeDecodeError:
        raise GgufmergeError(f"{path}: not a UTF-8 text of NAME=TYPE pairs") from None


def _facts(plan: Plan, report: BuildReport | None) -> dict[str, Any]:
    from ggufmerge.cli.build import parents_facts

    was = {t.name: t for t in plan.tensors}
    return {
        "file_type": str(plan.file_type),
        "output": str(report.output) if report else None,
        "files": [str(path) for path in report.files] if report else [],
        "nbytes": report.nbytes if report else plan.nbytes,
        "bits_per_weight": 8 * plan.nbytes / max(plan.parameters, 1),
        "seconds": report.seconds if report else None,
        "parameters": plan.parameters,
        "architecture": plan.architecture,
        "parents": parents_facts(plan)["parents"],
        "imatrix": list(plan.imatrix),
        "warnings": list(plan.warnings),
        "tensors": [
            {
                "name": name,
                "shape": list(t.shape),
                "type": str(t.type),
                "why": t.why_type,
                "decisions": list(t.decisions),
                "action": t.action,
                "nbytes": t.nbytes,
                "bits_per_weight": t.type.bits_per_weight,
                "relative_error": report.errors.get(name) if report else None,
            }
            for name, t in was.items()
        ],
    }


def _show(plan: Plan, report: BuildReport | None, *, every: bool) -> None:
    from ggufmerge.architectures.stacks import kind_of
    from ggufmerge.cli.terminal import show_notes, show_table, tell
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
        tell([f"{total}, {size(plan.nbytes)}; nothing was written"])
    else:
        tell([f"{report.output}: {total}, {size(report.nbytes)}, {report.seconds:.1f} s"])
