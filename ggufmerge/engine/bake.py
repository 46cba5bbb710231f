"""The plan of baking LoRA adapters into a model: `base + adapters`, written in any type.

Baking is a recipe of one model, so all rules of recipes hold: tensors that no adapter touches and that keep their type
are copied byte for byte, and the result says in its metadata what it was made from. The recipe is written here. What a
recipe cannot ask for is stochastic rounding, without which a change smaller than the steps of a type is lost in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from ggufmerge.engine import header
from ggufmerge.engine.plan import Plan, Rounding
from ggufmerge.engine.planner import Opened, make_plan
from ggufmerge.engine.rounding import UNIFORM
from ggufmerge.engine.run import Survival
from ggufmerge.errors import GgufmergeError
from ggufmerge.recipe import ModelReference, load_recipe
from ggufmerge.recipe.reference import AdapterReference
from ggufmerge.sources import open_source
from ggufmerge.text import utf8
from ggufmerge.types import FileType

LOW_SURVIVAL = 0.8  # share of a change; below it the result is worth a warning


def plan_bake(
    base: str | os.PathLike[str],
    adapters: Sequence[AdapterReference | str | os.PathLike[str]],
    *,
    out_type: FileType | str | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    rounding: Rounding = "stochastic",
) -> tuple[Plan, Opened]:
    """The plan of writing `base` with `adapters` applied, and what it reads from, opened.

    adapters: references, or "path" or "path=strength" as in recipes; their changes add up.
    out_type: file type of the result, such as "Q6_K"; None: each tensor keeps the type it has in the base.
    imatrix: importance matrices to quantize with, which add up.
    rounding: of tensors that keep a type with a uniform grid: "stochastic" keeps small changes (`engine.rounding`),
        "nearest" loses most of them. Tensors that get another type are always rounded to the nearest.
    GgufmergeError (PlanError, FormatError) says what does not fit.
    """
    parsed = [a if isinstance(a, AdapterReference) else AdapterReference.parse(os.fspath(a)) for a in adapters]
    if not parsed:
        raise GgufmergeError("name at least one adapter to bake into the base")
    reference = ModelReference(os.fspath(base), tuple(parsed))
    source = open_source(reference)
    try:
        name = header.display_name(source)
    finally:
        source.close()
    recipe = {
        "name": utf8(name),
        "merge_method": "passthrough",
        "models": [{"model": _written(reference)}],
        **({"out_type": str(out_type)} if out_type else {}),
        **({"imatrix": [os.fspath(path) for path in imatrix]} if imatrix else {}),
    }
    plan, opened = make_plan(load_recipe(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)))
    return (_stochastic(plan, opened), opened) if rounding == "stochastic" else (plan, opened)


def _stochastic(plan: Plan, opened: Opened) -> Plan:
    """The plan with stochastic rounding for all tensors that it is for."""
    tensors = []
    for t in plan.tensors:
        stored = opened.sources[0].file.tensors[t.inputs[0].tensor].type  # those of the file, side tensors too
        fits = t.action == "convert" and t.type == stored and t.type in UNIFORM
        tensors.append(replace(t, rounding="stochastic") if fits else t)
    if not any(t.rounding == "stochastic" for t in tensors):
        return plan
    options = " ".join([*([plan.options] if plan.options else []), "--rounding stochastic"])
    metadata = {**plan.metadata, "ggufmerge.options": options}
    return replace(plan, tensors=tuple(tensors), options=options, metadata=metadata)


def total_survival(survival: Mapping[str, Survival]) -> Survival:
    """Of all tensors together; `BuildReport.survival` has it for each."""
    return Survival(sum(s.kept for s in survival.values()), sum(s.energy for s in survival.values()))


def _written(reference: ModelReference) -> Any:
    """A reference as a recipe writes it: short if that reads back as the same, else as a mapping."""
    try:
        if ModelReference.parse(str(reference)) == reference:
            return str(reference)
    except ValueError:
        pass
    return {"model": reference.path, "lora": [{"path": a.path, "strength": a.strength} for a in reference.adapters]}
