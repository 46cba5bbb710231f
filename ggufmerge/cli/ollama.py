"""What `ggufmerge build` does for Ollama beside the GGUF file: a Modelfile, and the model in a store or on a server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ggufmerge.sinks.files import Advance
from ggufmerge.sinks.modelfile import check_modelfile, write_modelfile
from ggufmerge.sinks.ollama import Store, destination
from ggufmerge.sinks.settings import check_content, inherited
from ggufmerge.sources.ollama import OllamaSettings, blob_path

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.engine.planner import Opened
    from ggufmerge.recipe import Recipe


class ForOllama:
    """The part of one build that is for Ollama. PlanError when the name or the Modelfile's is taken or impossible.

    output: the file that the user wants, None when the model is to go to Ollama only.  name: of the model in Ollama.
    """

    def __init__(self, output: Path | None, name: str | None, *, modelfile: bool, overwrite: bool) -> None:
        self.place = destination(name, overwrite=overwrite) if name is not None else None
        self._wanted, self._overwrite = output, overwrite
        self._modelfile = modelfile and output is not None
        if output is not None and self._modelfile:
            check_modelfile(output, overwrite=overwrite)
        self._settings = OllamaSettings()
        self.facts: dict[str, Any] = {}

    @property
    def output(self) -> Path:
        """The file to build."""
        if self._wanted is not None:
            return self._wanted
        assert self.place is not None
        return self.place.workplace()

    @property
    def overwrite(self) -> bool:
        """Whether to build over a file that is there: what an earlier failure left in a store is nobody's."""
        return self._overwrite or (self._wanted is None and isinstance(self.place, Store))

    def check(self, plan: Plan, opened: Opened) -> list[str]:
        """Warnings; PlanError when Ollama would refuse the result or has no space for it."""
        if self.place is None and not self._modelfile:
            return []
        self._settings, warnings = inherited(opened.sources, plan.metadata)
        if self.place is not None:
            _check_planned(plan, opened)
        if isinstance(self.place, Store) and self._wanted is not None:
            self.place.check_space(self._wanted.parent, plan.nbytes)
        return warnings

    def finish(self, report: BuildReport, projector: Path | None = None) -> BuildReport:
        """Write the Modelfile and give the model to Ollama; `facts` and `lines` then tell of it. The report with the
        place where the file is now.

        projector: a file beside the output that the Modelfile names, too.
        """
        if self._modelfile:
            path = write_modelfile(report.output, self._settings, overwrite=self._overwrite, projector=projector)
            self.facts["modelfile"] = str(path)
        if self.place is None:
            return report
        try:
            with _advancing(f"giving {self.place.name} to Ollama", report.nbytes) as advance:
                done = self.place.add(report.output, self._settings, move=self._wanted is None, advance=advance)
        except BaseException:
            if report.output.exists():
                typer.echo(f"the merged model is complete: {report.output}", err=True)
            raise
        self.facts["ollama"] = asdict(done)
        if self._wanted is not None:
            return report
        if isinstance(self.place, Store):
            blob = blob_path(self.place.root, done.digest)
            return replace(report, output=blob, files=(blob,))
        return replace(report, output=Path(done.name), files=())

    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        if path := self.facts.get("modelfile"):
            yield f"{path}: for ollama create"
        if done := self.facts.get("ollama"):
            yield f"{done['name']}: is in Ollama ({done['place']}); ollama run {done['name']}"


def check_recipe(recipe: Recipe, name: str, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
    """PlanError when the result of a recipe could not go into Ollama; nothing is built."""
    from ggufmerge.engine import make_plan
    from ggufmerge.engine.stages import plan_stages

    destination(name, overwrite=overwrite)
    if recipe.stages:  # the files of the stages, with their metadata, are not there
        _check_planned(plan_stages(recipe, **wanted)[-1], None)
    else:
        _check_planned(*make_plan(recipe, **wanted))


def _check_planned(plan: Plan, opened: Opened | None) -> None:
    """PlanError when Ollama would refuse the result of a plan.

    opened: what it reads from; without it only what the plan itself says is looked at.
    """
    from ggufmerge.engine import header, vocabulary
    from ggufmerge.files import MetadataEditor

    editor = MetadataEditor()
    if opened is not None:
        editor = vocabulary.apply(opened.alignment, MetadataEditor(opened.sources[0].file.metadata))
    check_content({t.name: t.type for t in plan.tensors}, header.apply(plan.metadata, editor))


@contextmanager
def _advancing(text: str, total: int) -> Iterator[Advance]:
    """A bar on standard error while something slow goes on; nothing where nobody watches."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task(text, total=total)
        shown = time.monotonic()
        waiting = 0

        def advance(nbytes: int) -> None:
            nonlocal shown, waiting
            waiting += nbytes
            if time.monotonic() - shown > 0.1:
                bar.advance(task, waiting)
                shown, waiting = time.monotonic(), 0

        yield advance
