"""Models in, a merged file out, without a recipe: one is made for them (`propose`) and built."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggufmerge.engine.build import build
from ggufmerge.engine.propose import propose_merge
from ggufmerge.engine.run import BuildReport
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
    **options: Any,
) -> BuildReport:
    """Merge some models into the GGUF file `output`, by a recipe that is made for them.

        ggufmerge.merge_models(["storyteller.gguf", "coder.gguf"], "both.gguf", base="base.gguf", weights=[0.6, 0.4])

    output: None for a name made of theirs, which no file has; the report says which.
    options: those of `build` (imatrix, rounding, overwrite, threads, chunk, progress, split, sinks).
    The others, and the errors: see `propose_merge`, which tells what it chose and why.
    """
    proposal = propose_merge(
        models,
        base=base,
        find_base=find_base,
        method=method,
        weights=weights,
        parameters=parameters,
        out_type=out_type,
    )
    return build(proposal.recipe, Path(output) if output is not None else proposal.output, **options)
