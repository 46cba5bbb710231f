"""What not all models of a recipe have, or not in one shape: settled by `exclude` and `graft`, or else refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ggufmerge.architectures.stacks import part_of
from ggufmerge.errors import PlanError
from ggufmerge.keys import OTHER_SENSES
from ggufmerge.planning.layout import Slot
from ggufmerge.recipe import Recipe
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.recipe.settings import matches_any
from ggufmerge.sources import Source
from ggufmerge.sources.side_tensors import is_orphan
from ggufmerge.text import first_few


def reconciled(
    slots: Iterable[Slot], recipe: Recipe, references: Sequence[ModelReference], sources: Sequence[Source]
) -> list[Slot]:
    """The slots over opened sources; those that models have differently as `exclude` and `graft` say, from one of them.

    What is excluded stays as it is in the base or the first model, and away where that has none; vision and sound that
    this one lacks are away unless they are grafted. PlanError names tensors that some models lack, or have in another
    shape, and that neither word settles.
    """
    found = list(_reconciled(slots, recipe, references, sources))
    with recipe.blamed(("models",) if recipe.slices is None else ("slices",)):
        _check(found, sources)
    return found


def _reconciled(
    slots: Iterable[Slot], recipe: Recipe, references: Sequence[ModelReference], sources: Sequence[Source]
) -> Iterator[Slot]:
    grafts = {graft.model: graft.tensors for graft in recipe.graft}
    arch = sources[0].file.architecture
    for slot in slots:
        if slot.constant or not _differs(slot, sources):
            yield slot
            continue
        having = [i for i, name in enumerate(slot.names) if name is not None]
        givers = [
            references.index(model) for model, patterns in grafts.items() if matches_any(patterns, slot.name, arch)
        ]
        first = slot.slice.base or 0
        if givers:
            own = [i for i in having if slot.slice.parts[i].source in givers]
            yield _alone(slot, (own or having)[0], "grafted, so what the other models have does not matter")
        elif not matches_any(recipe.exclude, slot.name, arch):
            if None not in slot.names or not slot.name.startswith(OTHER_SENSES):
                yield slot
        elif first in having:
            yield _alone(slot, first, "excluded from merging")


def _alone(slot: Slot, part: int, note: str) -> Slot:
    """A slot that one part of its slice fills, as it is."""
    only = replace(slot.slice, parts=(slot.slice.parts[part],), base=None)
    return replace(slot, slice=only, names=(slot.names[part],), decisions=(*slot.decisions, note), constant=True)


def _shapes(slot: Slot, sources: Sequence[Source]) -> list[tuple[str, tuple[int, ...]]]:
    """(label, shape) of what each model that has it has for a slot."""
    origins = zip(slot.slice.parts, slot.names, strict=True)
    return [(sources[p.source].label, sources[p.source].tensors[n].shape) for p, n in origins if n is not None]


def _differs(slot: Slot, sources: Sequence[Source]) -> bool:
    """Whether not all models have the tensor, or not all in one shape."""
    return None in slot.names or len({shape for _, shape in _shapes(slot, sources)}) > 1


def _check(filled: Sequence[Slot], sources: Sequence[Source]) -> None:
    """PlanError naming the tensors that some of a slice's models have and others lack, or have in another shape."""
    missing: dict[str, list[str]] = {}
    for slot in filled:
        for part, name in zip(slot.slice.parts, slot.names, strict=True):
            if name is None:
                missing.setdefault(sources[part.source].label, []).append(slot.name)
    for label, names in missing.items():
        what = f"{label} lacks tensors that the other models have ({first_few(names, 3)})"
        todo = f"merge fine-tunes of one base, or leave them to the base with exclude: {part_of(names[0])}"
        raise PlanError(f"{what}; {todo}")
    for slot in filled:
        if _differs(slot, sources):
            listed = ", ".join(f"{label} {list(shape)}" for label, shape in _shapes(slot, sources))
            raise PlanError(f"{slot.name}: the shapes differ ({listed}); merge fine-tunes of one base")
        origins = [(n, sources[p.source]) for p, n in zip(slot.slice.parts, slot.names, strict=True)]
        if len(origins) > 1 and any(n is not None and is_orphan(n, source.tensors) for n, source in origins):
            raise PlanError(
                f"{slot.name}: a scale whose weight goes by another name, so it cannot be merged; "
                "use another file of the model"
            )
