"""Grafts: tensors of the result that are taken from one model as they are, whatever the merge makes of the others."""

from __future__ import annotations

from collections.abc import Sequence

from ggufmerge.errors import PlanError, RecipeError
from ggufmerge.planning.models import LaidOut
from ggufmerge.planning.plan import Input, PlannedTensor
from ggufmerge.recipe import Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.settings import matches
from ggufmerge.sources import Source


def with_grafts(
    recipe: Recipe, merged: Sequence[PlannedTensor], laid_out: LaidOut
) -> tuple[list[PlannedTensor], frozenset[str]]:
    """The tensors, those that a graft names replaced by the same tensors of its model, in the type they have there; and
    the names of these.

    RecipeError for a filter that means no tensor, PlanError where the model's tensor is missing or has another shape.
    """
    tensors = {tensor.name: tensor for tensor in merged}
    grafted: set[str] = set()
    architecture = laid_out.sources[0].file.architecture
    for number, graft in enumerate(recipe.graft):
        index = laid_out.references.index(graft.model)
        place: Location = ("graft", number)
        for pattern in graft.tensors:
            hits = [name for name in tensors if matches(pattern, name, architecture)]
            if not hits:
                what = f'the filter "{pattern}" of graft matches no tensor of the result'
                raise RecipeError(recipe.complaint(place, what))
            with recipe.blamed(place):
                tensors |= {name: _graft(tensors[name], index, laid_out.sources[index]) for name in hits}
            grafted.update(hits)
    return list(tensors.values()), frozenset(grafted)


def _graft(tensor: PlannedTensor, index: int, source: Source) -> PlannedTensor:
    """The tensor of this name that source number `index` has."""
    stored = source.tensors.get(tensor.name)
    if stored is None:
        raise PlanError(f"{source.label} has no {tensor.name} to graft")
    if stored.shape != tensor.shape:
        shapes = f"{list(stored.shape)} in {source.label}, {list(tensor.shape)} in the result"
        raise PlanError(f"{stored.name} has another shape: {shapes}")
    notes = (f"grafted from {source.label}", *source.notes(stored.name))
    return PlannedTensor(stored.name, stored.shape, stored.type, "copy", (Input(index, stored.name),), decisions=notes)
