"""Recipes of several documents: each stage becomes a GGUF file of its own, which the documents after it merge further.

All documents are planned before the first one is built, on files that have a header and no data (a file system stores
the missing part as nothing), so a mistake in the last document is found before the work on the first one starts.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from ggufmerge.files.atomic import remove_folder
from ggufmerge.files.output import Output, explained
from ggufmerge.files.writer import Layout
from ggufmerge.planning.checks import with_checked_options
from ggufmerge.planning.opened import Opened, header_of, watched
from ggufmerge.planning.plan import Plan
from ggufmerge.planning.planner import plan_document
from ggufmerge.recipe import Options, Recipe
from ggufmerge.running.effort import digested, work_of
from ggufmerge.running.rates import Rates
from ggufmerge.running.run import BuildReport, identity

Runner = Callable[[Plan, Opened, Path], BuildReport]


@dataclass(frozen=True)
class Documents:
    """The documents of a recipe, planned.

    recipe: the one in effect (`Recipe.with_options`); None for a plan that was made without one.
    plans: of all, the final one last.  sources: what each reads from; a stage is there without its data.
    inputs: every file that any document reads, but for stages.
    identity: a hash of all that the bytes of the result depend on, and of the state of the inputs (see `run.identity`).
    """

    recipe: Recipe | None
    plans: tuple[Plan, ...]
    sources: tuple[Opened, ...]
    inputs: tuple[Path, ...]
    identity: str

    @property
    def final(self) -> Plan:
        return self.plans[-1]

    @property
    def opened(self) -> Opened:
        """What the final one reads from."""
        return self.sources[-1]

    def works(self, chunk: int) -> list[tuple[int, int]]:
        """The work of each document, in units of progress, and its tensors."""
        rates = Rates.load()
        found = []
        for plan, opened in zip(self.plans, self.sources, strict=True):
            work = work_of(plan, opened, rates, chunk=chunk, digests=digested(plan, opened))
            found.append((work.ticks, len(plan.tensors)))
        return found

    @property
    def nbytes(self) -> int:
        """Size of all files that are written, those of the stages among them."""
        return sum(plan.nbytes for plan in self.plans)


@contextmanager
def planned_documents(recipe: Recipe, **options: Unpack[Options]) -> Iterator[Documents]:
    """Plan all documents of a recipe; the options are the final one's. The block keeps the files open."""
    recipe = with_checked_options(recipe, **options)
    plans: list[Plan] = []
    sources: list[Opened] = []
    states: list[str] = []
    inputs: list[Path] = []
    with ExitStack() as stack:
        files: dict[str, str] = {}

        def note(plan: Plan, opened: Opened) -> None:
            stack.callback(opened.close)
            plans.append(plan)
            sources.append(opened)
            kept = [s for s in opened.sources if str(s.file.path) not in files.values()]
            watch = watched(kept)
            inputs.extend([*watch.paths, *opened.others])
            # a stage is what its own plan makes of its own inputs, which are among the states already
            own = Opened(kept, opened.imatrix)
            states.append(identity(plan, own, watch))

        if recipe.stages:
            folder = _temporary_folder()
            stack.callback(remove_folder, folder)
        for document in (*recipe.stages, recipe):
            plan, opened = plan_document(document.with_files(files))
            note(plan, opened)
            if document is not recipe:
                path = folder / _file_name(len(files), document)
                _write_header(plan, opened, path)
                files[str(document.name)] = str(path)
        whole = states[0] if len(states) == 1 else hashlib.sha256("/".join(states).encode()).hexdigest()
        yield Documents(recipe, tuple(plans), tuple(sources), tuple(dict.fromkeys(inputs)), whole)


def documents_of(plan: Plan, opened: Opened) -> Documents:
    """A plan that was made without a recipe (`quantize`), or of one document, as `planned_documents` gives it."""
    watch = watched(opened.sources)
    return Documents(None, (plan,), (opened,), (*watch.paths, *opened.others), identity(plan, opened, watch))


def plan_stages(recipe: Recipe, **options: Unpack[Options]) -> list[Plan]:
    """The plans of all documents of a recipe, the final one last; see `planned_documents`."""
    with planned_documents(recipe, **options) as documents:
        return list(documents.plans)


def build_stages(recipe: Recipe, output: Output, runner: Runner, skip: Callable[[], None] = lambda: None) -> Recipe:
    """Build the stages of a recipe beside an output, which owns them; gives the final document with their files.

    Stages that an interrupted build has finished from the same inputs are taken over; `skip` is called for each.
    """
    files: dict[str, str] = {}
    for stage in recipe.stages:
        folder = output.stage_folder()
        plan, opened = plan_document(stage.with_files(files))
        try:
            # the folder says what is in the file, so one that is there is the one that would be built
            place = folder / identity(plan, opened, watched(opened.sources))[:32]
            place.mkdir(exist_ok=True)
            path = place / _file_name(len(files), stage)
            if path.exists():
                skip()
            else:
                runner(plan, opened, path)
        finally:
            opened.close()
        files[str(stage.name)] = str(path.absolute())
    return recipe.with_files(files)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="ggufmerge-"))
    except OSError as error:
        raise explained(error, Path(tempfile.gettempdir())) from None


def _file_name(number: int, stage: Recipe) -> str:
    """What the file of a stage is called; the result names it among its sources."""
    return f"{number}-{re.sub(r'[^A-Za-z0-9._-]+', '-', str(stage.name))[:64]}.gguf"


def _write_header(plan: Plan, opened: Opened, path: Path) -> None:
    """A GGUF file of the planned size whose tensors are holes."""
    layout = Layout(*header_of(plan, opened))
    try:
        with path.open("wb") as f:
            f.write(layout.header)
            f.truncate(layout.total_bytes)
    except OSError as error:
        raise explained(error, path) from None
