"""Which type each tensor is written in."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ggufmerge.errors import PlanError, RecipeError
from ggufmerge.formats.experts import open_types
from ggufmerge.patterns import Budget, Pattern
from ggufmerge.places.references import locate
from ggufmerge.planning.actions import with_actions
from ggufmerge.planning.fitting import market
from ggufmerge.planning.plan import PlannedTensor
from ggufmerge.quants.importance import Imatrix
from ggufmerge.quants.mixture import Decision, decide_types, guess_file_type, parse_tensor_type, types_like
from ggufmerge.recipe import Recipe
from ggufmerge.recipe.budget import ByteBudget
from ggufmerge.sources import Source
from ggufmerge.text import quoted
from ggufmerge.types import FileType, TensorType

_FLOAT_FILES = {"float32": FileType.F32, "float16": FileType.F16, "bfloat16": FileType.BF16}


@dataclass(frozen=True)
class Typed:
    """The tensors with the types that they are written in and what that makes of them, and the file type for all."""

    tensors: tuple[PlannedTensor, ...]
    file_type: FileType
    warnings: tuple[str, ...]


def typed(
    recipe: Recipe,
    tensors: Sequence[PlannedTensor],
    sources: Sequence[Source],
    structure: Mapping[str, Any],
    imatrix: Imatrix | None,
    fixed: Collection[str] = (),
) -> Typed:
    """What a recipe makes of the types of its tensors.

    structure: changes to the metadata of the first source that the result's layers bring about.
    fixed: names of the tensors that keep the types they have.
    RecipeError and PlanError say which type is asked for that no tensor can have.
    """
    wanted = recipe.out_type or (None if recipe.like else _FLOAT_FILES.get(recipe.out_dtype or recipe.dtype or ""))
    planned = _PlannedHeader(ChainMap(structure, sources[0].metadata), {t.name: t for t in tensors})  # type: ignore[arg-type]
    budget = ByteBudget.parse(recipe.max_size, recipe.max_bpw)
    if budget is not None:
        wanted, chosen = None, _bought(recipe, budget, planned, sources, imatrix, fixed)
    else:
        chosen = _chosen(recipe, wanted, planned, imatrix)
    chosen = [was if was.name in fixed else now for was, now in zip(tensors, chosen, strict=True)]
    file_type = FileType.parse(wanted) if wanted else guess_file_type({t.name: t.type for t in chosen}, sources[0])
    done, warnings = with_actions(chosen, sources, file_type, imatrix, recipe.rounding, calibrated=recipe.is_calibrated)
    return Typed(tuple(done), file_type, tuple(warnings))


def _chosen(
    recipe: Recipe, wanted: str | None, planned: _PlannedHeader, imatrix: Imatrix | None
) -> list[PlannedTensor]:
    """The tensors with the types of a file type, of another file, or of their own, and those that are demanded."""
    tensors = list(planned.tensors.values())
    if wanted is not None:
        overrides = [(pattern, TensorType.parse(name)) for pattern, name in recipe.tensor_types.items()]
        return with_decided_types(tensors, decide_types(planned, wanted, imatrix, tensor_types=overrides))
    if recipe.like is None:
        return _with_demanded_types(recipe, [replace(t, why_type="as in the first model") for t in tensors])
    with open_types(locate(recipe.like, recipe.folder)) as other:
        return _with_demanded_types(recipe, with_decided_types(tensors, types_like(planned, other)))


def _bought(
    recipe: Recipe,
    budget: ByteBudget,
    planned: _PlannedHeader,
    sources: Sequence[Source],
    imatrix: Imatrix | None,
    fixed: Collection[str],
) -> list[PlannedTensor]:
    """The tensors with the types that a budget buys, judged by the weights of the first model of each."""
    demanded = [(pattern, TensorType.parse(name)) for pattern, name in recipe.tensor_types.items()]
    tensors = list(planned.tensors.values())
    found = market(planned, tensors, sources, imatrix, tensor_types=demanded, fixed=fixed)
    return found.fit(budget).tensors()


def with_decided_types(tensors: Sequence[PlannedTensor], decided: Mapping[str, Decision]) -> list[PlannedTensor]:
    """The tensors with the types that the mixture rules gave them, and why."""
    typed = []
    for t in tensors:
        d = decided[t.name]
        note = (f"{d.type} instead of {d.wanted}: {d.reason}",) if d.type != d.wanted else ()
        typed.append(replace(t, type=d.type, why_type=d.reason, decisions=(*t.decisions, *note)))
    return typed


def _with_demanded_types(recipe: Recipe, tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """The tensors with the types that the recipe's tensor_types demand for some of them."""
    budget = Budget()
    rules = [
        (pattern, Pattern(pattern, re.IGNORECASE, budget), parse_tensor_type(f"{pattern}={name}")[1])
        for pattern, name in recipe.tensor_types.items()
    ]
    for pattern, expression, _ in rules:
        if not any(expression.search(t.name) for t in tensors):
            what = f"the pattern {quoted(pattern)} of tensor_types matches no tensor"
            raise RecipeError(recipe.complaint(("tensor_types", pattern), what))
    typed = []
    for t in tensors:
        pattern, kind = next(((p, k) for p, e, k in rules if e.search(t.name)), ("", t.type))
        if t.n % kind.block_size:
            raise PlanError(f"{t.name}: rows of {t.n} values do not fit {kind}'s blocks of {kind.block_size}")
        typed.append(replace(t, type=kind, why_type=f"asked for by {pattern}") if pattern else t)
    return typed


@dataclass(frozen=True)
class _PlannedHeader:
    """A model that does not exist yet, as the mixture rules want to see it."""

    metadata: Mapping[str, Any]
    tensors: dict[str, PlannedTensor]


def types_in(
    file_type: str, tensors: Sequence[PlannedTensor], changes: Mapping[str, Any], donor: Mapping[str, Any]
) -> dict[str, TensorType]:
    """The types that a plan's tensors would have in a file of another type. changes: to the metadata of the donor."""
    metadata = ChainMap({key: value for key, value in changes.items() if value is not None}, donor)  # type: ignore[arg-type]
    decided = decide_types(_PlannedHeader(metadata, {t.name: t for t in tensors}), file_type)
    return {name: decision.type for name, decision in decided.items()}


def size_in(types: Mapping[str, TensorType], tensors: Iterable[PlannedTensor]) -> int:
    """Bytes of a plan's tensors in other types, by name, where these are wider."""

    def bytes_of(t: PlannedTensor) -> int:
        kind = types.get(t.name, t.type)
        return max(t.nbytes, kind.row_bytes(t.n) * t.rows) if t.type.is_quantized else t.nbytes

    return sum(map(bytes_of, tensors))
