"""Why a tensor gets the parameters it gets: each value with the rule and the line of the recipe it comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ggufmerge.errors import RecipeError
from ggufmerge.methods import method as find_method
from ggufmerge.methods.parameters import Parameter, Value
from ggufmerge.planning.checks import check_files
from ggufmerge.planning.layout import Slot
from ggufmerge.planning.models import lay_out
from ggufmerge.planning.plan import PlannedTensor
from ggufmerge.planning.planner import plan_of
from ggufmerge.planning.resolve import Found, Resolver
from ggufmerge.recipe import Recipe, load_recipe
from ggufmerge.recipe.settings import matches


@dataclass(frozen=True)
class Origin:
    """One parameter's value for one tensor. `model` is empty for parameters that all models share.

    where: `recipe.yaml:7:5` or "default".  rule: the filter or gradient that gave the value, in words.
    """

    parameter: str
    model: str
    value: Value
    where: str
    rule: str


@dataclass(frozen=True)
class Explanation:
    """What happens to one tensor and why."""

    tensor: str
    action: str
    method: str
    method_where: str
    type: str
    type_why: str
    origins: tuple[Origin, ...]


def explain(recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str], pattern: str = "*") -> list[Explanation]:
    """An explanation of each tensor that `pattern` (a filter as in recipes) means; RecipeError when it means none.

    recipe: as `load_recipe` takes it.
    """
    recipe = load_recipe(recipe)
    check_files(recipe)
    laid_out = lay_out(recipe)
    with closing(laid_out):
        plan, _ = plan_of(recipe, laid_out)
        planned: Mapping[str, PlannedTensor] = {t.name: t for t in plan.tensors}
        resolver = Resolver(recipe, laid_out.sources)
        found = [
            _explain(recipe, resolver, slot, planned[slot.name])
            for slot in laid_out.slots
            if pattern == "*" or matches(pattern, slot.name, resolver.architecture)
        ]
    if not found:
        raise RecipeError(
            f'"{pattern}" means no tensor of the result; filters are parts of names such as blk.0.ffn_down'
        )
    return found


def _explain(recipe: Recipe, resolver: Resolver, slot: Slot, planned: PlannedTensor) -> Explanation:
    name = recipe.method_for(slot.name, resolver.architecture)
    origins = () if slot.constant else tuple(_origins(resolver, slot, name))
    return Explanation(
        slot.name,
        planned.action,
        name,
        recipe.where(("merge_method",)),
        str(planned.type),
        planned.why_type or "; ".join(planned.decisions),
        origins,
    )


def _origins(resolver: Resolver, slot: Slot, name: str) -> Iterator[Origin]:
    method = find_method(name)
    order = slot.slice.order(method, resolver.recipe)
    others = order[1:] if slot.slice.uses_base(method) else order
    for parameter in method.parameters:
        for i in [None] if parameter.scope == "shared" else others:
            model = "" if i is None else resolver.sources[slot.slice.parts[i].source].reference
            yield _origin(resolver.recipe, parameter, model, resolver.find(parameter, slot, i), slot)


def _origin(recipe: Recipe, parameter: Parameter, model: str, found: Found | None, slot: Slot) -> Origin:
    if found is None:
        return Origin(parameter.name, model, parameter.default, "default", parameter.doc)
    words = [f'filter "{found.rule.filter}"'] if found.rule.filter else []
    if isinstance(found.rule.value, tuple):
        anchors = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in found.rule.value)
        words.append(f"gradient [{anchors}] at {slot.position:.3g}")
    return Origin(parameter.name, model, found.value, recipe.where(found.where), ", ".join(words))
