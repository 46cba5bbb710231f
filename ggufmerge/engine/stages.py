"""Recipes of several documents: each stage becomes a GGUF file of its own, which the documents behind it merge further.

All stages are planned before the first one is built, on files that have a header and no data (a file system stores
the missing part as nothing), so a mistake in the last document is found before the work on the first one starts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ggufmerge.engine import header, vocabulary
from ggufmerge.engine.plan import Plan, Rounding
from ggufmerge.engine.planner import Opened, make_plan
from ggufmerge.engine.run import BuildReport, identity
from ggufmerge.errors import GgufmergeError
from ggufmerge.files import MetadataEditor, TensorInfo
from ggufmerge.files.writer import Layout
from ggufmerge.recipe import Recipe

Runner = Callable[[Plan, Opened, Path], BuildReport]


def plan_stages(
    recipe: Recipe,
    *,
    out_type: str | None = None,
    imatrix: Sequence[str | os.PathLike[str]] = (),
    rounding: Rounding | None = None,
) -> list[Plan]:
    """The plans of all documents of a recipe, the final one last, to which the options belong."""
    plans = []
    with tempfile.TemporaryDirectory(prefix="ggufmerge-") as folder:
        files: dict[str, str] = {}
        for stage in recipe.stages:
            plan, opened = make_plan(stage.with_files(files))
            path = Path(folder) / f"{len(files)}.gguf"
            _write_header(plan, opened, path)
            files[str(stage.name)] = str(path)
            opened.close()
            plans.append(plan)
        plan, opened = make_plan(recipe.with_files(files), out_type=out_type, imatrix=imatrix, rounding=rounding)
        opened.close()
    return [*plans, plan]


def _write_header(plan: Plan, opened: Opened, path: Path) -> None:
    """A GGUF file of the planned size whose tensors are holes."""
    editor = vocabulary.apply(opened.alignment, MetadataEditor(opened.sources[0].file.metadata))
    editor = header.apply(plan.metadata, editor)
    layout = Layout(editor, [TensorInfo(t.name, t.shape, t.type) for t in plan.tensors])
    with path.open("wb") as f:
        f.write(layout.header)
        f.truncate(layout.total_bytes)


@contextmanager
def built_stages(recipe: Recipe, output: Path, runner: Runner) -> Iterator[Recipe]:
    """Build the stages of a recipe beside `output`; gives the final document with their files in place.

    The files go when the block ends, with a result or an error; after an interruption, whatever form the caller gives
    it, what is finished stays and is taken over by the next build.
    """
    folder = output.with_name(f".{output.name}.stages")
    files: dict[str, str] = {}
    over = False
    try:
        for stage in recipe.stages:
            folder.mkdir(exist_ok=True)
            plan, opened = make_plan(stage.with_files(files))
            # the name says what is in the file, so one that is there is the one that would be built
            path = folder / f"{len(files)}-{identity(plan, opened)[:16]}.gguf"
            if not path.exists():
                runner(plan, opened, path)
            opened.close()
            files[str(stage.name)] = str(path.absolute())
        yield recipe.with_files(files)
        over = True
    except (GgufmergeError, OSError):
        over = True
        raise
    finally:
        if over and folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
