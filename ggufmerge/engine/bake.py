"""The plan of baking LoRA adapters into a model: `base + adapters`, written in any type.

Baking is a recipe of one model, so all rules of recipes hold: tensors that no adapter touches and that keep their type
are copied byte for byte, and the result says in its metadata what it was made from. The recipe is written here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import yaml

from ggufmerge.errors import GgufmergeError, PlanError, RoleError
from ggufmerge.places.opening import is_model, open_source
from ggufmerge.places.references import check_found
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan, Rounding
from ggufmerge.planning.planner import make_plan
from ggufmerge.planning.survival import Survival, total
from ggufmerge.recipe import ModelReference, load_recipe
from ggufmerge.recipe.load import OPTIONS
from ggufmerge.recipe.recipe import type_of_option
from ggufmerge.recipe.reference import AdapterReference
from ggufmerge.running.progress import Progress
from ggufmerge.running.run import BuildReport, run
from ggufmerge.sources import Source
from ggufmerge.text import printable, utf8
from ggufmerge.types import FileType


def bake(
    base: str | os.PathLike[str],
    adapters: Sequence[AdapterReference | str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    out_type: FileType | str | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    calibration: Sequence[str | os.PathLike[str]] = (),
    rounding: Rounding | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Write `base` with LoRA `adapters` applied as the GGUF file `output`.

    adapters: "path", or "path=strength" such as "style.gguf=0.5"; GGUF files or PEFT folders, whose changes add up.
    The others: see `plan_bake` and `run`. The report's `errors` and `survival` are of all weights.
    GgufmergeError (PlanError, FormatError, OutputError) says what does not fit.
    """
    plan, opened = plan_bake(
        base, adapters, out_type=out_type, imatrix=imatrix, calibration=calibration, rounding=rounding
    )
    with opened:
        return run(plan, opened, output, overwrite=overwrite, threads=threads, progress=progress, measure=True)


def plan_bake(
    base: str | os.PathLike[str],
    adapters: Sequence[AdapterReference | str | os.PathLike[str]],
    *,
    out_type: FileType | str | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    calibration: Sequence[str | os.PathLike[str]] = (),
    rounding: Rounding | None = None,
) -> tuple[Plan, Opened]:
    """The plan of writing `base` with `adapters` applied, and what it reads from, opened.

    adapters: references, or "path" or "path=strength" as in recipes; their changes add up.
    out_type: file type of the result, such as "Q6_K"; None: each tensor keeps the type it has in the base.
    imatrix: importance matrices to quantize with, which add up.  calibration: statistics to round with, instead.
    rounding: of tensors that keep their quantized type: "stochastic" keeps small changes (`quants.encoders`),
        "nearest" loses most of them; None or "auto" takes stochastic where nearest would lose the change. Tensors that
        get another type are always rounded to the nearest.
    GgufmergeError (PlanError, FormatError) says what does not fit.
    """
    if isinstance(adapters, str | os.PathLike):
        raise GgufmergeError("the adapters are a list, also when there is one: [adapter]")
    try:
        parsed = [a if isinstance(a, AdapterReference) else AdapterReference.parse(os.fspath(a)) for a in adapters]
    except ValueError as error:
        raise GgufmergeError(str(error)) from None
    if out_type is not None:
        type_of_option(str(out_type))
    if not parsed:
        raise GgufmergeError("name at least one adapter to bake into the base")
    reference = ModelReference(os.fspath(base), tuple(parsed))
    check_found(
        [
            *(("", path) for path in reference.paths),
            *(("--imatrix", os.fspath(path)) for path in imatrix),
            *(("--calibration", os.fspath(path)) for path in calibration),
        ]
    )
    source = _opened(reference)
    try:
        name = source.name
        _check_changes(source)
    finally:
        source.close()
    recipe = {
        "name": utf8(name),
        "merge_method": "passthrough",
        "models": [{"model": reference.written()}],
        **({"out_type": str(out_type)} if out_type else {}),
        **({"imatrix": [os.fspath(path) for path in imatrix]} if imatrix else {}),
        **({"calibration": [os.fspath(path) for path in calibration]} if calibration else {}),
        **({"rounding": rounding} if rounding else {}),
    }
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return make_plan(load_recipe(text, arguments=OPTIONS))


def _opened(reference: ModelReference) -> Source:
    """The base with its adapters; RoleError says what to do in terms of this command."""
    try:
        return open_source(reference)
    except RoleError as error:
        others = [adapter.path for adapter in reference.adapters]
        if error.found == "adapter":
            swapped = next((path for path in others if is_model(path)), "")
            rest = [reference.path, *(path for path in others if path != swapped)]
            todo = f"name the model first: {' '.join(map(printable, [swapped or 'MODEL', *rest]))}"
            raise error.to_do(todo) from None
        models = " ".join(map(printable, [reference.path, *filter(is_model, others)]))
        todo = f"baking takes one model and its adapters; to merge models: ggufmerge merge {models}"
        raise error.to_do(todo) from None


def _check_changes(source: Source) -> None:
    """PlanError when none of the adapters changes anything."""
    reasons = {adapter: adapter.idle() for adapter in source.adapters}
    if not all(reasons.values()):
        return
    lines = [f"{adapter.file.path}: the adapter changes nothing: {why}" for adapter, why in reasons.items()]
    trained = any(adapter.strength for adapter in source.adapters)
    todo = "use one that was trained" if trained else "give it another strength"
    raise PlanError(*lines[:-1], f"{lines[-1]}; {todo}")


def total_survival(survival: Mapping[str, Survival]) -> Survival:
    """Of all tensors together; `BuildReport.survival` has it for each."""
    return total(survival.values())
