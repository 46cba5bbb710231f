"""Recipe and headers to Plan: everything that can fail for a knowable reason fails here, in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Unpack

from ggufmerge.architectures.layers import Changed, Layers
from ggufmerge.chat.templates import TEMPLATE
from ggufmerge.formats.imatrix import load_together
from ggufmerge.places.references import locate
from ggufmerge.planning.checks import loading_troubles, with_checked_options
from ggufmerge.planning.grafts import with_grafts
from ggufmerge.planning.header import result_metadata
from ggufmerge.planning.layers import doubts, layer_metadata
from ggufmerge.planning.models import LaidOut, lay_out, planned_sources
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Opening, Plan
from ggufmerge.planning.resolve import resolved
from ggufmerge.planning.settings import Facts, settled
from ggufmerge.planning.survival import expectations
from ggufmerge.planning.tables import TABLES
from ggufmerge.planning.tensor_types import typed
from ggufmerge.planning.vocabulary import PlannedTokenizer, planned_tokenizer
from ggufmerge.recipe import Options, Recipe


def make_plan(recipe: Recipe, **options: Unpack[Options]) -> tuple[Plan, Opened]:
    """The plan of a recipe, and what it reads from, opened.

    options: what wins over the recipe's keys, see `Recipe.with_options`. Without a rounding it is chosen for each
    tensor by its weights.
    RecipeError, PlanError and FormatError say what does not fit.
    """
    return plan_document(with_checked_options(recipe, **options))


def plan_document(recipe: Recipe) -> tuple[Plan, Opened]:
    """The plan of a recipe whose options have won already and whose files are there; see `make_plan`."""
    laid_out = lay_out(recipe)
    with ExitStack() as on_failure:
        on_failure.callback(laid_out.close)
        made = plan_of(recipe, laid_out)
        on_failure.pop_all()
    return made


def plan_of(recipe: Recipe, laid_out: LaidOut) -> tuple[Plan, Opened]:
    """The plan over models that are open and stay so; see `make_plan`."""
    sources = laid_out.sources
    tensors, grafted = with_grafts(recipe, resolved(recipe, laid_out), laid_out)
    matrix_files = [str(locate(path, recipe.folder)) for path in recipe.statistics]
    matrix = load_together(matrix_files)
    structure, unclear = layer_metadata(recipe, sources, laid_out.slices)
    types = typed(recipe, tensors, sources, structure, matrix, grafted)
    tokenizer = planned_tokenizer(recipe, sources, laid_out.alignment)
    settings = settled(recipe, laid_out.references, sources, _facts(laid_out, structure, tokenizer))
    header = result_metadata(recipe, laid_out, types, structure, tokenizer.changes | settings.changes, matrix)
    warnings = [*recipe.warnings, *(line for source in sources for line in source.warnings), *laid_out.warnings]
    warnings += [*tokenizer.warnings, *types.warnings, *settings.warnings, *header.warnings, *unclear]
    warnings += doubts(
        sources, laid_out.slices, taken=settings.taken, tensors=tensors, grafted=grafted, imatrix=matrix or ()
    )
    arch, count = sources[0].file.architecture, sum(piece.layers for piece in laid_out.slices)
    main = Layers(arch, count, Changed(sources[0].metadata, structure)).main
    warnings += loading_troubles(arch, [tensor.name for tensor in types.tensors], main)
    planned = planned_sources(laid_out)
    # the planned sources read their metadata as well, so what was ignored there is known afterwards
    warnings += [line for source in sources for line in source.misfits()]
    opened = Opened(sources, matrix, _others(recipe, matrix_files))
    opening = Opening(tuple(opened.fingerprints()), _stages(recipe, laid_out))
    plan = Plan(
        method=" + ".join(recipe.methods),
        architecture=arch,
        file_type=types.file_type,
        seed=recipe.seed,
        folder=recipe.folder,
        recipe=recipe.text,
        sources=planned,
        tensors=types.tensors,
        imatrix=tuple(matrix_files),
        metadata=header.changes,
        taken={key: number for key, number in settings.taken.items() if header.changes.get(key, number) is not None},
        warnings=tuple(warnings),
        vocabulary=tokenizer.vocabulary,
        expectations=tuple(expectations(types.tensors, planned, opened.is_adapted)),
        opening=opening,
    )
    return plan, opened


def _facts(laid_out: LaidOut, structure: Mapping[str, Any], tokenizer: PlannedTokenizer) -> Facts:
    """What is known of a merge that its settings depend on."""
    tables = {slot.name: slot.slice.parts[0].source for slot in laid_out.slots if slot.name in TABLES}
    stacked = all(len(piece.parts) == 1 for piece in laid_out.slices)
    return Facts(laid_out.alignment, structure, stacked, tables, tokenizer.changes.get(TEMPLATE))


def _others(recipe: Recipe, imatrix: Sequence[str]) -> tuple[Path, ...]:
    """The files besides the models that a plan is made from."""
    like = [locate(recipe.like, recipe.folder)] if recipe.like else []
    read = [Path(recipe.folder) / recipe.origin, *map(Path, imatrix), *like]
    return tuple(path for path in read if path.exists())


def _stages(recipe: Recipe, laid_out: LaidOut) -> dict[str, str]:
    """The files of the documents that a recipe is made from, by their names."""
    located = {reference.path: recipe.locate(reference).path for reference in laid_out.references}
    return {name: path for name, path in located.items() if name != path}
