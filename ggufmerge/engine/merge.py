"""Models in, a merged file out, without a recipe: one is made for them (`propose`) and built."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufmerge.engine.build import Sink, build
from ggufmerge.engine.propose import propose_merge
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.planning.plan import Rounding
from ggufmerge.running.progress import Progress
from ggufmerge.running.run import DEFAULT_CHUNK, BuildReport
from ggufmerge.types import FileType


def merge_models(
    models: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    find_base: bool = True,
    method: str | None = None,
    weights: Sequence[float] = (),
    parameters: Mapping[str, Any] | None = None,
    out_type: FileType | str | None = None,
    options: Mapping[str, Any] | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    calibration: Sequence[str | os.PathLike[str]] = (),
    rounding: Rounding | None = None,
    noise_aware: str | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    progress: Progress | None = None,
    split: SplitLimit | None = None,
    sinks: Sequence[Sink] = (),
) -> BuildReport:
    """Merge some models into the GGUF file `output`, by a recipe that is made for them.

        ggufmerge.merge_models(["storyteller.gguf", "coder.gguf"], "both.gguf", base="base.gguf", weights=[0.6, 0.4])

    output: None for a name made of theirs, which no file has; the report says which.
    models to options, and the errors: see `propose_merge`, which tells what it chose and why; its warnings are among
        the report's.  imatrix, calibration and the rest: see `build`.
    """
    proposal = propose_merge(
        models,
        base=base,
        find_base=find_base,
        method=method,
        weights=weights,
        parameters=parameters,
        out_type=out_type,
        options=options,
    )
    report = build(
        proposal.recipe,
        Path(output) if output is not None else proposal.output,
        imatrix=imatrix,
        calibration=calibration,
        rounding=rounding,
        noise_aware=noise_aware,
        overwrite=overwrite,
        threads=threads,
        chunk=chunk,
        progress=progress,
        split=split,
        sinks=sinks,
    )
    return replace(report, warnings=(*proposal.warnings, *report.warnings))
