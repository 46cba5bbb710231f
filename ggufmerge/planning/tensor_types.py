"""Which type each tensor is written in, and whether it can be."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ggufmerge.errors import GgufmergeError, PlanError, RecipeError
from ggufmerge.files import open_gguf
from ggufmerge.patterns import Budget, Pattern
from ggufmerge.places.references import locate
from ggufmerge.planning.plan import PlannedTensor, Rounding
from ggufmerge.quants import codec, grid_of
from ggufmerge.quants.encoders import encoder
from ggufmerge.quants.importance import Imatrix
from ggufmerge.quants.mixture import (
    Decision,
    decide_types,
    guess_file_type,
    needs_imatrix,
    parse_tensor_type,
    types_like,
)
from ggufmerge.recipe import Recipe
from ggufmerge.sources import Source
from ggufmerge.text import quoted
from ggufmerge.types import FileType, TensorType

_FLOAT_FILES = {"float32": FileType.F32, "float16": FileType.F16, "bfloat16": FileType.BF16}


def check_type(name: str) -> None:
    """GgufmergeError unless a file type has this name, which was given as the argument `out_type`."""
    try:
        FileType.parse(name)
    except GgufmergeError as error:
        raise error.at("--type") from None


def with_types(
    recipe: Recipe,
    out_type: str | None,
    tensors: list[PlannedTensor],
    sources: Sequence[Source],
    structure: dict[str, Any],
    imatrix: Imatrix | None,
    fixed: Collection[str] = (),
) -> tuple[list[PlannedTensor], FileType]:
    """The tensors with the types they are written in and what that makes of them, and the file type for all.

    structure: changes to the metadata of the first source that the result's layers bring about.
    fixed: names of the tensors that keep the types they have.
    """
    donor = sources[0]
    float_file = _FLOAT_FILES.get(recipe.out_dtype or recipe.dtype or "")
    wanted = out_type or recipe.out_type or (None if recipe.like else float_file)
    planned = _PlannedHeader(ChainMap(structure, donor.metadata), {t.name: t for t in tensors})  # type: ignore[arg-type]
    if wanted is not None:
        overrides = [(pattern, TensorType.parse(name)) for pattern, name in recipe.tensor_types.items()]
        typed = with_decided_types(tensors, decide_types(planned, wanted, imatrix, tensor_types=overrides))
    elif recipe.like is not None:
        with open_gguf(locate(recipe.like, recipe.folder)) as other:
            typed = _with_demanded_types(recipe, with_decided_types(tensors, types_like(planned, other)))
    else:
        typed = _with_demanded_types(recipe, [replace(t, why_type="as in the first model") for t in tensors])
    typed = [was if was.name in fixed else now for was, now in zip(tensors, typed, strict=True)]
    file_type = FileType.parse(wanted) if wanted else guess_file_type({t.name: t.type for t in typed}, donor)
    return [with_action(t, sources) for t in typed], file_type


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


def with_action(tensor: PlannedTensor, sources: Sequence[Source]) -> PlannedTensor:
    """A tensor with a single input is copied if its bytes stay what they are, else converted."""
    if tensor.action == "merge":
        return tensor
    only = tensor.inputs[0]
    same = sources[only.source].stores(only.tensor, tensor.type, tensor.name)
    # a single input is what is left of a merge; the others play no part any more
    return replace(tensor, inputs=tensor.inputs[:1], action="copy" if same else "convert")


def with_rounding(tensor: PlannedTensor, sources: Sequence[Source], asked: Rounding | None) -> PlannedTensor:
    """A tensor with the rounding of its change: as asked for where the type has a grid that the weights lie on already.

    Rows of a changed vocabulary are a change of no one model, and rounded to the nearest.
    asked: by the recipe; None leaves it to the weights ("auto").
    """
    if not changes(tensor, sources) or any(sources[i.source].moves(i.tensor) for i in tensor.inputs):
        return tensor
    keeps = tensor.type in reference_types(tensor, sources).values()
    fits = (keeps and grid_of(tensor.type) is not None) or not encoder(asked or "stochastic").needs_grid
    return replace(tensor, keeps_type=keeps, rounding=(asked or "auto") if fits else "nearest")


def changes(tensor: PlannedTensor, sources: Sequence[Source]) -> bool:
    """Whether a tensor of the result has other weights than its inputs, apart from rounding."""
    first = tensor.inputs[0]
    return tensor.action == "merge" or (
        tensor.action == "convert" and sources[first.source].changed_by_adapter(first.tensor)
    )


def reference_types(tensor: PlannedTensor, sources: Sequence[Source]) -> dict[int, TensorType]:
    """The inputs of a tensor that its result may be a change of, by their numbers, with the types they are stored in.

    The base; without one the inputs that have the result's type, on whose grids it may be caught, else the first one.
    """
    candidates = tensor.inputs[:1] if tensor.has_base else tensor.inputs
    types = {i: sources[given.source].file.tensors[given.tensor].type for i, given in enumerate(candidates)}
    return {i: kind for i, kind in types.items() if kind == tensor.type} or {0: types[0]}


def types_in(
    file_type: str, tensors: Sequence[PlannedTensor], changes: Mapping[str, Any], donor: Mapping[str, Any]
) -> dict[str, TensorType]:
    """The types that a plan's tensors would have in a file of another type. changes: to the metadata of the donor."""
    metadata = ChainMap({key: value for key, value in changes.items() if value is not None}, donor)  # type: ignore[arg-type]
    decided = decide_types(_PlannedHeader(metadata, {t.name: t for t in tensors}), file_type)
    return {name: decision.type for name, decision in decided.items()}


def check_writable(tensors: Sequence[PlannedTensor], file_type: FileType, imatrix: Imatrix | None) -> list[str]:
    """PlanError for tensors that cannot be quantized as planned; warnings for those that go without their imatrix."""
    uncovered, unseen = [], dict[str, int]()
    for t in tensors:
        if t.action == "copy":
            continue
        if not codec(t.type).writable:
            raise PlanError(f"{t.name}: {t.type} can be read but not written; choose another --type")
        weights = imatrix.get(t.name, t.n, t.matrices) if imatrix else None
        if weights is None and (codec(t.type).needs_imatrix or needs_imatrix(t.name, t.type, file_type)):
            remedy = "one made for this model" if imatrix else "one with --imatrix FILE"
            raise PlanError(
                f"{t.name}: {t.type} cannot be written without an importance matrix: give {remedy}, "
                f"or choose a wider --type"
            )
        if imatrix and weights is None and t.name.startswith("blk.") and codec(t.type).quantize_weighted is not None:
            uncovered.append(t.name)
        if imatrix and weights is not None and codec(t.type).quantize_weighted is not None:
            unseen |= {t.name: missed} if (missed := imatrix.missed(t.name)) else {}
    warnings = []
    if uncovered:
        more = f" and {len(uncovered) - 1} more" if len(uncovered) > 1 else ""
        warnings.append(f"the importance matrix has no entry for {uncovered[0]}{more}: quantized without")
    if unseen:
        name, most = max(unseen.items(), key=lambda item: item[1])
        more = f", and some of {len(unseen) - 1} more" if len(unseen) > 1 else ""
        warnings.append(
            f"the importance matrix never saw {most} of the experts of {name}{more}: they are quantized without; one "
            "made from more text sees them"
        )
    return warnings
