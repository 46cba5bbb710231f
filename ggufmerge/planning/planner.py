"""Recipe and headers to Plan: everything that can fail for a knowable reason fails here, in seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ggufmerge.errors import PlanError, RecipeError
from ggufmerge.files import MetadataEditor, TensorInfo, facts
from ggufmerge.formats.imatrix import load_together
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import locate
from ggufmerge.planning import checks, header, provenance, vocabulary
from ggufmerge.planning.plan import Input, Opening, Plan, PlannedSource, PlannedTensor, Rounding
from ggufmerge.planning.resolve import LaidOut, lay_out, resolved
from ggufmerge.planning.side_tensors import with_side_tensors
from ggufmerge.planning.survival import expectations
from ggufmerge.planning.tensor_types import (
    check_type,
    check_writable,
    with_rounding,
    with_types,
)
from ggufmerge.quants.importance import Imatrix
from ggufmerge.recipe import ModelReference, Recipe, load_recipe
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.reference import AdapterReference
from ggufmerge.recipe.settings import matches
from ggufmerge.sources import Source, TensorReader
from ggufmerge.sources.aligned import aligned
from ggufmerge.tokenizers import Alignment


@dataclass(frozen=True)
class Opened:
    """What a plan reads from: its sources in order, in one vocabulary, and its importance matrix if it has one.

    others: files that were read besides: the recipe, importance matrices, the file whose types are followed.
    """

    sources: list[Source]
    imatrix: Imatrix | None = None
    others: tuple[Path, ...] = ()

    @classmethod
    def from_plan(cls, plan: Plan) -> Opened:
        """What a plan reads from, opened again: in another process, whose working folder is that of the planner, or in
        this one. What was read besides (`others`) is left out.

        PlanError when a file is not there any more, or has other weights than it had for the plan.
        """
        opening, sources = plan.opening, list[Source]()
        with ExitStack() as on_failure:
            for planned in plan.sources:
                reference = _reference_of(planned)
                path = opening.stages.get(reference.path, reference.path)
                source = open_source(replace(reference, path=path), plan.folder)
                on_failure.callback(source.close)
                source.reference = str(reference)
                sources.append(source)
            matrix = load_together([str(locate(path, ".")) for path in plan.imatrix])
            if matrix is not None and (opening.include or opening.exclude):
                matrix = matrix.select(opening.include, opening.exclude)
            alignment = _alignment_of(plan, sources)
            opened = cls(sources if alignment is None else aligned(sources, alignment), matrix)
            names = [*(source.label for source in sources), "the importance matrix"]
            for name, was, now in zip(names, opening.fingerprints, opened.fingerprints(), strict=False):
                if was != now:
                    raise PlanError(f"{name}: has other weights than when the plan was made: make the plan again")
            on_failure.pop_all()
        return opened

    def files(self) -> list[Path]:
        """Every file that the plan was made from, none of which may be written."""
        return [*(path for source in self.sources for path in source.files()), *self.others]

    def fingerprints(self) -> list[str]:
        """What tells these weights from others: of each source, then of the importance matrix; as they were when this
        was asked first (`files.watch` notices what changes later).
        """
        return list(self._fingerprints)

    @cached_property
    def _fingerprints(self) -> list[str]:
        matrix = [self.imatrix.fingerprint()] if self.imatrix else []
        return [source.fingerprint() for source in self.sources] + matrix

    def close(self) -> None:
        """Close the files of the sources; leaving a `with` block does so, too."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inputs(self, tensor: PlannedTensor) -> list[TensorReader]:
        """A reader of each input of a tensor."""
        return [self.sources[i.source].open_tensor(i.tensor, tensor.name) for i in tensor.inputs]


def header_of(plan: Plan, opened: Opened) -> tuple[MetadataEditor, list[TensorInfo]]:
    """What stands in the header of a plan's result: its metadata and its tensors."""
    return header.apply(plan.metadata, opened.sources[0].editor()), [
        TensorInfo(t.name, t.shape, t.type) for t in plan.tensors
    ]


def make_plan(
    recipe: Recipe,
    *,
    out_type: str | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    rounding: Rounding | None = None,
) -> tuple[Plan, Opened]:
    """The plan of a recipe, and what it reads from, opened.

    out_type: a file type that wins over the recipe's out_type, out_dtype and dtype.
    imatrix: files that win over the recipe's; several are combined.
    rounding: wins over the recipe's; without either it is chosen for each tensor by its weights.
    RecipeError, PlanError and FormatError say what does not fit.
    """
    if out_type is not None:
        check_type(out_type)
    laid_out = lay_out(recipe, imatrix)
    with ExitStack() as on_failure:
        for source in laid_out.sources:
            on_failure.callback(source.close)
        made = plan_of(recipe, laid_out, out_type=out_type, imatrix=imatrix, rounding=rounding)
        on_failure.pop_all()
    return made


def plan_of(
    recipe: Recipe,
    laid_out: LaidOut,
    *,
    out_type: str | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    rounding: Rounding | None = None,
) -> tuple[Plan, Opened]:
    """The plan over models that are open and stay so; see `make_plan`."""
    sources, donor = laid_out.sources, laid_out.sources[0]
    merged = resolved(recipe, laid_out)
    tensors = _with_grafts(recipe, merged, laid_out)
    grafted = {now.name for was, now in zip(merged, tensors, strict=True) if now is not was}

    given = [(os.fspath(p), ".") for p in imatrix] or [(p, recipe.folder) for p in recipe.imatrix]
    matrix_files = [str(locate(*place)) for place in given]
    matrix = load_together(matrix_files)
    structure, unclear = header.layer_metadata(donor, sources, laid_out.slices)
    tensors, file_type = with_types(recipe, out_type, tensors, sources, structure, matrix, grafted)
    tensors = with_side_tensors(tensors, sources)
    asked = rounding or recipe.rounding
    tensors = [with_rounding(t, sources, asked) for t in tensors]
    tokenizer, warnings = vocabulary.tokenizer_metadata(recipe, sources, laid_out.alignment)
    warnings = [*recipe.warnings, *(w for s in sources for w in s.warnings), *laid_out.warnings, *warnings]
    warnings += check_writable(tensors, file_type, matrix)
    shapes = {t.name: t.shape for t in tensors}
    layers = sum(piece.layers for piece in laid_out.slices)
    if problems := header.check_overrides(recipe.metadata, donor.file.architecture, shapes, layers):
        raise RecipeError(*(recipe.complaint(("metadata",), problem) for problem in problems))
    options = [f"--imatrix {Path(p).name}" for p in imatrix]
    options = ([f"--type {out_type}"] if out_type else []) + options + ([f"--rounding {rounding}"] if rounding else [])
    rounds = any(t.rounding != "nearest" for t in tensors)
    metadata, more = header.result_metadata(
        name=_result_name(recipe, donor),
        recipe=recipe.text,
        options=" ".join(options),
        settings=provenance.settings(
            file_type=str(file_type),
            rounding=(asked or provenance.AUTO) if rounds else "nearest",
            seed=recipe.seed,
            imatrix=[Path(p).name for p in matrix_files],
        ),
        file_type=file_type,
        quantized=any(t.type.is_quantized for t in tensors),
        sources=sources,
        structure=structure,
        tokenizer=tokenizer,
        imatrix=matrix.metadata() if matrix else {},
        overrides=recipe.metadata,
    )
    warnings += [*checks.differences(sources), *more, *unclear]
    planned = tuple(map(planned_source, laid_out.references, sources))
    # the planned sources read their metadata as well, so what was ignored there is known afterwards
    warnings += [line for source in sources for line in source.misfits()]
    plan = Plan(
        method=" + ".join(recipe.methods),
        architecture=donor.file.architecture,
        file_type=file_type,
        seed=recipe.seed,
        folder=recipe.folder,
        recipe=recipe.text,
        options=" ".join(options),
        sources=planned,
        tensors=tuple(tensors),
        imatrix=tuple(matrix_files),
        metadata=metadata,
        warnings=tuple(warnings),
        vocabulary=vocabulary.planned(laid_out.alignment, recipe, sources),
        expectations=tuple(
            expectations(
                tensors, planned, lambda t: any(sources[i.source].changed_by_adapter(i.tensor) for i in t.inputs)
            )
        ),
    )
    read = [Path(recipe.folder) / recipe.origin, *map(Path, matrix_files)]
    read += [locate(recipe.like, recipe.folder)] if recipe.like else []
    others = tuple(path for path in read if path.exists())
    opened = Opened(sources, matrix, others)
    located = {reference.path: recipe.locate(reference).path for reference in laid_out.references}
    stages = {name: path for name, path in located.items() if name != path}
    return replace(plan, opening=Opening(tuple(opened.fingerprints()), stages)), opened


def _reference_of(planned: PlannedSource) -> ModelReference:
    """What the recipe calls a planned source."""
    return ModelReference(planned.path, tuple(AdapterReference(*adapter) for adapter in planned.adapters))


def _alignment_of(plan: Plan, sources: Sequence[Source]) -> Alignment | None:
    """How the vocabularies of a plan's sources become one, found out from its recipe again."""
    if plan.vocabulary is None:
        return None
    recipe = load_recipe(f"{plan.recipe}\n")
    wanted = [_reference_of(source) for source in plan.sources]
    for stage in (recipe, *recipe.stages):
        document = stage.with_files(plan.opening.stages).in_folder(plan.folder)
        references = document.references()
        if references != wanted:
            continue
        alignment = vocabulary.alignment_of(document, references, sources)
        if vocabulary.planned(alignment, document, sources) == plan.vocabulary:
            return alignment
    labels = " and ".join(source.label for source in plan.sources)
    raise PlanError(f"the vocabularies of {labels} are others than when the plan was made: make it again")


def _with_grafts(recipe: Recipe, merged: Sequence[PlannedTensor], laid_out: LaidOut) -> list[PlannedTensor]:
    """The tensors, those that a graft names replaced by the same tensors of its model, in the type they have there."""
    tensors = list(merged)
    for number, graft in enumerate(recipe.graft):
        index = laid_out.references.index(graft.model)
        source = laid_out.sources[index]
        place: Location = ("graft", number)
        for pattern in graft.tensors:
            hits = [i for i, t in enumerate(tensors) if matches(pattern, t.name)]
            if not hits:
                what = f'the filter "{pattern}" of graft matches no tensor of the result'
                raise RecipeError(recipe.complaint(place, what))
            for i in hits:
                stored = source.tensors.get(tensors[i].name)
                if stored is None:
                    raise PlanError(recipe.complaint(place, f"{source.label} has no {tensors[i].name} to graft"))
                if stored.shape != tensors[i].shape:
                    shapes = f"{list(stored.shape)} in {source.label}, {list(tensors[i].shape)} in the result"
                    raise PlanError(recipe.complaint(place, f"{stored.name} has another shape: {shapes}"))
                only = (Input(index, stored.name),)
                notes = (f"grafted from {source.label}", *source.notes(stored.name))
                tensors[i] = PlannedTensor(stored.name, stored.shape, stored.type, "copy", only, decisions=notes)
    return tensors


def _result_name(recipe: Recipe, donor: Source) -> str:
    if recipe.name:
        return recipe.name
    return f"{donor.name} merge" if recipe.origin == "recipe" else Path(recipe.origin).stem


def planned_source(reference: ModelReference, source: Source) -> PlannedSource:
    return PlannedSource(
        label=source.label,
        path=reference.path,
        adapters=tuple((a.path, a.strength) for a in reference.adapters),
        name=source.name,
        architecture=source.file.architecture,
        file_type=str(facts.file_type(source.file)),
        nbytes=sum(path.stat().st_size for path in source.files()),
    )
