"""What must be there, what must agree between the sources, and what the place of the output must allow, before work
starts.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from ggufmerge.architectures.mla import is_joined, is_split
from ggufmerge.architectures.spellings import of_ollama
from ggufmerge.architectures.tensors import lacking, unread
from ggufmerge.errors import OutputError, PlanError, collected
from ggufmerge.files.output import work_files
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.writer import check_regular, partial_path, same_file
from ggufmerge.keys import ARCHITECTURE, OTHER_SENSES
from ggufmerge.places.references import check_found
from ggufmerge.planning.plan import Plan
from ggufmerge.recipe import Options, Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.sources import Source
from ggufmerge.text import first_few, size


def with_checked_options(recipe: Recipe, **options: Unpack[Options]) -> Recipe:
    """`Recipe.with_options` of a recipe whose files are all there, and those of the options; else PlanError."""
    check_files(recipe, options.get("imatrix", ()), options.get("calibration", ()))
    return recipe.with_options(**options)


def check_files(
    recipe: Recipe,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    calibration: Sequence[str | os.PathLike[str]] = (),
) -> None:
    """PlanError that names every file that a recipe or one of its stages names and that does not exist.

    imatrix, calibration: given beside the recipe, instead of its own.
    """
    stages = {stage.name for stage in recipe.stages}
    problems: list[str] = []
    for document in (*recipe.stages, recipe):
        places: list[tuple[Location, str]] = [
            (document.place_of(reference), path)
            for reference in document.references()
            for path in document.locate(reference).paths
            if path not in stages
        ]
        places += [(("like",), document.like)] if document.like else []
        if document is not recipe or not (imatrix or calibration):
            places += [(("imatrix",), path) for path in document.imatrix]
            places += [(("calibration",), path) for path in document.calibration]
        with collected(problems):
            check_found(((document.where(place), path) for place, path in places), document.folder)
    with collected(problems):
        check_found(("--imatrix", os.fspath(path)) for path in imatrix)
        check_found(("--calibration", os.fspath(path)) for path in calibration)
    if problems:
        raise PlanError(*problems)


def check_donor(source: Source) -> None:
    """PlanError unless the source can give a result its metadata and tokenizer."""
    if source.is_checkpoint:
        raise PlanError(
            f"{source.file.path}: a Hugging Face checkpoint gives weights only, but the result takes its metadata and "
            "tokenizer from a GGUF file; convert it with convert_hf_to_gguf.py of llama.cpp and name the result"
        )


def check_member(source: Source, donor: Source) -> None:
    """PlanError or FormatError unless a source can be merged with the one that gives the result its metadata."""
    if source is donor:
        check_donor(source)
    check_architectures([donor, source])
    _check_layouts([donor, source])


def check_architectures(sources: Sequence[Source]) -> None:
    """PlanError or FormatError unless all sources have one `general.architecture`."""
    first = sources[0]
    if not first.metadata.need_text(ARCHITECTURE) or not first.file.architecture:
        raise PlanError(f"{first.file.path}: {ARCHITECTURE} names no architecture; this file is not a model")
    for other in sources[1:]:
        if other.file.architecture != first.file.architecture:
            raise PlanError(
                f"different architectures: {first.label} is {first.file.architecture!r}, "
                f"{other.label} is {other.file.architecture!r}; {_todo(first, other)}"
            )


def _todo(first: Source, other: Source) -> str:
    """What to do about two models of different architectures."""
    for one, same in ((first, other), (other, first)):
        spelling = of_ollama(one.file.architecture)
        if spelling is not None and spelling.architecture == same.file.architecture:
            called = f"{one.file.architecture!r} is how Ollama calls {spelling.architecture!r}"
            if spelling.same:
                return f"{called}: make {same.label} the base, or without a base the first model"
            return (
                f"{called}, and its files have other tensors: take both from Hugging Face (hf:OWNER/REPO:TYPE), or "
                "both from Ollama"
            )
    letters = {re.sub("[^a-z0-9]", "", source.file.architecture.lower()) for source in (first, other)}
    if len(letters) > 1:
        return "only fine-tunes of one base can be merged"
    spelt = min(first.file.architecture, other.file.architecture, key=lambda name: sum(not c.isalnum() for c in name))
    return (
        f"{spelt!r} is how Ollama calls it, whose files of this model have other tensors; take both from Hugging Face "
        "(hf:OWNER/REPO:TYPE), or both from Ollama"
    )


def _check_layouts(sources: Sequence[Source]) -> None:
    """PlanError when sources have one weight in two layouts, one of which cannot be made of the other."""
    old = next((source for source in sources if is_joined(source.tensors)), None)
    new = next((source for source in sources if is_split(source.tensors)), None)
    if old is not None and new is not None and old is not new:
        raise PlanError(
            f"{old.label} and {new.label} are stored in two layouts, which do not fit each other here: attention has "
            "attn_kv_b in the first, as before April 2025, and attn_k_b and attn_v_b in the second, with a part of it "
            f"transposed; bake adapters first, or instead of {old.label} take a newer file of that model, or convert "
            "its original with convert_hf_to_gguf.py of llama.cpp"
        )


def loading_troubles(architecture: str, names: Sequence[str], layers: int) -> list[str]:
    """Warnings for tensors of a result for which llama.cpp would not load it."""
    found = []
    extra, gone = unread(architecture, names), lacking(architecture, names, layers)
    senses = [name for name in extra if name.startswith(OTHER_SENSES)]
    if senses:
        found.append(
            f"the result has {len(senses)} tensors of vision or sound ({first_few(senses, 2)}), as Ollama keeps them: "
            "llama.cpp v0.5.0 does not load a language model that has them"
        )
    if others := [name for name in extra if name not in senses]:
        found.append(
            f"llama.cpp v0.5.0 knows no {first_few(others, 2)} of {architecture}, and does not load files with tensors "
            "that it does not know; they are kept for other programs"
        )
    if gone:
        found.append(
            f"the result lacks {first_few(gone, 2)}, without which llama.cpp v0.5.0 does not load {architecture}: take "
            "complete files"
        )
    return found


def output_files(plan: Plan, output: Path, split: SplitLimit | None) -> list[Path]:
    """The files that a plan is written to: `output`, or its shards. PlanError when `output` is a device or the like."""
    if split is None:
        return [output]
    check_regular(output)
    return split.paths(output, plan.tensors)


def check_inputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """PlanError when an output is one of these files."""
    for target in outputs:
        if any(same_file(target, path) for path in inputs):
            raise PlanError(f"{target}: the output is also an input; choose another name")


def check_targets(files: Sequence[Path], others: Sequence[Path], inputs: Sequence[Path]) -> None:
    """PlanError when one of the files that a build writes is one of its inputs, or two of them are one.

    files: of the output, with their work files.  others: what is made of it, beside it or elsewhere.
    """
    check_inputs([*files, *others], inputs)
    taken = [path for file in files for path in (file, *work_files(file))]
    for target in others:
        if any(same_file(target, path) for path in taken):
            raise PlanError(f"{target}: is a file of the output; choose another name")
        taken.append(target)


def check_space(outputs: Sequence[Path], nbytes: int) -> None:
    """OutputError when there is no room for this many bytes in the folder of the outputs."""
    folder = outputs[0].parent
    free = shutil.disk_usage(folder).free
    for partial in map(partial_path, outputs):
        if partial.is_file():  # an interrupted build of the same output has its space already
            free += partial.stat().st_blocks * 512 if hasattr(partial.stat(), "st_blocks") else partial.stat().st_size
    if free < nbytes:
        raise OutputError(
            f"{folder}: the result needs {size(nbytes)} but only {size(free)} are free; "
            "free some space or choose another folder"
        )
