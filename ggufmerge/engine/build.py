"""From a recipe to a merged file in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ggufmerge.engine.checks import check_output, output_files
from ggufmerge.engine.plan import Rounding
from ggufmerge.engine.planner import make_plan
from ggufmerge.engine.progress import Progress
from ggufmerge.engine.run import DEFAULT_CHUNK, BuildReport, run
from ggufmerge.engine.stages import built_stages, plan_stages
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.recipe import Recipe, load_recipe


def build(
    recipe: Recipe | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    out_type: str | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    rounding: Rounding | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    progress: Progress | None = None,
    split: SplitLimit | None = None,
) -> BuildReport:
    """Merge the models of `recipe` (a Recipe, a path, or YAML text) into the GGUF file `output`.

    out_type: file type that wins over the recipe's, such as "Q8_0".  imatrix: files that win over the recipe's.
    rounding: "stochastic" or "nearest", wins over the recipe's (see `make_plan`).
    threads: None for all cores.
    chunk: values of a tensor that a thread works on at a time; memory grows with it, the result does not depend on it.
    split: how large the shards may be that are written instead of one file; their names begin with `output`.
    GgufmergeError (RecipeError, FormatError, PlanError) before work starts when something does not fit.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    output = Path(output)
    if recipe.stages:
        plans = plan_stages(recipe, out_type=out_type, imatrix=imatrix, rounding=rounding)
        check_output(output_files(plans[-1], output, split), [], sum(p.nbytes for p in plans), overwrite=overwrite)
    runner = partial(run, threads=threads, chunk=chunk, progress=progress)
    with built_stages(recipe, output, runner) as final:
        plan, opened = make_plan(final, out_type=out_type, imatrix=imatrix, rounding=rounding)
        try:
            return runner(plan, opened, output, overwrite=overwrite, split=split)
        finally:
            opened.close()
