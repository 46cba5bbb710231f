"""The models of a recipe, opened and in one vocabulary, and the tensors that the result has of them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from ggufmerge.files import facts
from ggufmerge.methods import method as find_method
from ggufmerge.places.opening import open_source
from ggufmerge.planning.checks import check_member
from ggufmerge.planning.filters import check_filters, check_gradients
from ggufmerge.planning.layout import Slice, Slot, lay, without_effect
from ggufmerge.planning.plan import PlannedSource
from ggufmerge.planning.presence import reconciled
from ggufmerge.planning.vocabulary import alignment_of
from ggufmerge.recipe import ModelReference, Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.sources import Source
from ggufmerge.sources.aligned import aligned
from ggufmerge.sources.layouts import to_one_layout
from ggufmerge.tokenizers import Alignment


@dataclass(frozen=True)
class LaidOut:
    """A recipe over its opened models: the tensors of the result, their parameters not yet looked up.

    sources: as the result has them, in one vocabulary.
    alignment: how their vocabularies became one, None when they were the same.
    warnings: what has no effect, one line each.
    """

    references: list[ModelReference]
    sources: list[Source]
    slices: list[Slice]
    slots: list[Slot]
    warnings: list[str]
    alignment: Alignment | None = None

    def close(self) -> None:
        """Close the files of the sources."""
        for source in self.sources:
            source.close()


def lay_out(recipe: Recipe) -> LaidOut:
    """Open the models of a recipe and find out which tensors the result has.

    RecipeError, PlanError and FormatError say which models do not fit together or do not fit the recipe.
    """
    opened: list[tuple[ModelReference, Source]] = []
    with ExitStack() as on_failure:
        for reference in recipe.references():
            with recipe.blamed(recipe.place_of(reference)):
                source = open_source(recipe.locate(reference), recipe.folder)
            on_failure.callback(source.close)
            opened.append((reference, source))
        laid_out = _laid_out(recipe, opened)
        on_failure.pop_all()
    return laid_out


def _laid_out(recipe: Recipe, opened: list[tuple[ModelReference, Source]]) -> LaidOut:
    """A recipe over its models, which are open; see `lay_out`."""
    methods = [find_method(name) for name in recipe.methods]
    for reference, source in opened:
        source.reference = str(reference)  # a stage is called by its name, not by the file it was built into
    # the first source gives metadata and tokenizer, which checkpoints do not bring; the order has no other meaning
    opened.sort(key=lambda pair: pair[1].is_checkpoint)
    references, sources = [reference for reference, _ in opened], [source for _, source in opened]
    models: Location = ("models",) if recipe.slices is None else ("slices",)
    to_one_layout(sources)
    for reference, source in zip(references, sources, strict=True):
        with recipe.blamed(recipe.place_of(reference)):
            check_member(source, sources[0])
    asked = next((key for key in ("tokenizer", "tokenizer_source") if getattr(recipe, key)), None)
    with recipe.blamed((asked,) if asked else models):
        alignment = alignment_of(recipe, references, sources)
    if alignment is not None:
        sources = aligned(sources, alignment)
    slices, slots = lay(recipe, methods, references, sources)
    slots = reconciled(slots, recipe, references, sources)
    warnings = without_effect(recipe, methods, slices, slots, sources)
    warnings += [*check_filters(recipe, slots, sources), *check_gradients(recipe, slots)]
    return LaidOut(references, sources, slices, slots, warnings, alignment)


def planned_sources(laid_out: LaidOut) -> tuple[PlannedSource, ...]:
    """The models as the plan tells of them."""
    return tuple(map(planned_source, laid_out.references, laid_out.sources))


def planned_source(reference: ModelReference, source: Source) -> PlannedSource:
    """A model as a plan tells of it."""
    return PlannedSource(
        label=source.label,
        path=reference.path,
        adapters=tuple((a.path, a.strength) for a in reference.adapters),
        name=source.name,
        architecture=source.file.architecture,
        file_type=str(facts.file_type(source.file)),
        nbytes=sum(path.stat().st_size for path in source.files()),
    )
