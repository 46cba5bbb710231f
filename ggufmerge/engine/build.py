"""From a recipe to a merged file, and to whatever else is made of it, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Unpack

from ggufmerge.engine.documents import build_stages, plan_stages, planned_documents
from ggufmerge.files.journal import Move
from ggufmerge.files.output import Output
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.planning.checks import check_space, check_targets, output_files
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan
from ggufmerge.planning.planner import plan_document
from ggufmerge.recipe import Options, Recipe, load_recipe
from ggufmerge.running.effort import finish_kind
from ggufmerge.running.progress import Across, Progress
from ggufmerge.running.rates import Measured
from ggufmerge.running.run import DEFAULT_CHUNK, BuildReport, run


class Sink(Protocol):
    """Something that is made of a finished file: a Modelfile beside it, a model in Ollama, an upload."""

    def targets(self) -> Sequence[Path]:
        """The files that it writes."""

    def inputs(self) -> Sequence[Path]:
        """The files that it reads."""

    def check(self, plan: Plan, opened: Opened, output: Output) -> Iterable[str]:
        """Warnings, before work starts; PlanError for what can be known then to fail.

        A name that `output.owns` may be there already, written by an interrupted run of the same build.
        """

    def finish(self, report: BuildReport, output: Output) -> BuildReport:
        """Do it, after `output.claim` of every name it writes; the report, with the place where the file is now."""


def plan(recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str], **options: Unpack[Options]) -> Plan:
    """What building `recipe` would do to each tensor; only headers are read, and no file stays open.

    The options and errors are those of `build`. Of a recipe of several documents it is the plan of the final one;
    all are checked (`engine.documents.plan_stages` gives all).
    """
    return plan_stages(load_recipe(recipe), **options)[-1]


def build(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    threads: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    progress: Progress | None = None,
    split: SplitLimit | None = None,
    sinks: Sequence[Sink] = (),
    **options: Unpack[Options],
) -> BuildReport:
    """Merge the models of `recipe` (a Recipe, a path, YAML text, or a mapping of the same) into the GGUF file `output`.

    options: what wins over the recipe's keys, by name (`Recipe.with_options`):
        out_type: a file type, such as "Q8_0".  max_size, max_bpw: a budget for which types are chosen, instead.
        imatrix, calibration: files to quantize with; those of `ggufmerge calibrate` are for calibrated rounding.
        rounding: "auto", "stochastic" or "nearest".  noise_aware: "auto" or "off".
    threads: None for all cores.
    chunk: values of a tensor that a thread works on at a time; memory grows with it, the result does not depend on it.
    split: how large the shards may be that are written instead of one file; their names begin with `output`.
    sinks: what else is made of the file, in this order. They belong to the build: the same call after an interruption
    does what is left of them.
    GgufmergeError (RecipeError, FormatError, PlanError) before work starts when something does not fit. After an
    interruption or an error of the machine, the same call continues with the work that is left (`files.output`).
    """
    recipe = load_recipe(recipe)
    progress = progress or Progress()
    with planned_documents(recipe, **options) as documents:
        files = output_files(documents.final, Path(output), split)
        targets = [path for sink in sinks for path in sink.targets()]
        check_targets(files, targets, [*documents.inputs, *(path for sink in sinks for path in sink.inputs())])
        with Output(files, overwrite=overwrite) as out:
            move = out.take_up(f"{documents.identity}/{chunk}/{split}")
            warnings = list(dict.fromkeys(line for plan in documents.plans for line in plan.warnings))
            warnings += split.warnings(documents.final.tensors) if split else []
            if not out.has_lock:
                warnings.append(f"{files[0].parent}: has no file locks: do not start a second build of this output")
            for sink in sinks:
                warnings += sink.check(documents.final, documents.opened, out)
            progress.warn(warnings)
            plan, opened = documents.final, documents.opened
            effective = documents.recipe
            if effective is not None and effective.stages and move in (Move.START, Move.RESUME):
                check_space(files, documents.nbytes)
                progress = across = Across(progress, documents.works(chunk))
                runner = partial(run, threads=threads, chunk=chunk, progress=progress)
                final = build_stages(effective, out, runner, across.skip)
                plan, opened = plan_document(final)
            try:
                report = run(plan, opened, out, threads=threads, chunk=chunk, progress=progress, split=split)
            finally:
                if opened is not documents.opened:
                    opened.close()
            began = sum(os.times()[:4])  # with that of children: a chat template is tried by one
            for sink in sinks:
                report = sink.finish(report, out)
            progress.measured(
                {finish_kind(documents.final, documents.opened): Measured(1, sum(os.times()[:4]) - began)}
            )
            out.complete()
    return report
