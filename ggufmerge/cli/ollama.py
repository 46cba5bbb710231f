"""What `ggufmerge build` does for Ollama beside the GGUF file: a Modelfile, and the model in a store or on a server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufmerge.cli.terminal import complain
from ggufmerge.files.journal import Move
from ggufmerge.files.small import file_name
from ggufmerge.sinks.files import Advance
from ggufmerge.sinks.modelfile import check_modelfile, modelfile_path, write_modelfile
from ggufmerge.sinks.ollama import Store, destination
from ggufmerge.sinks.ollama_api import Installed, Server
from ggufmerge.sinks.settings import check_content, inherited
from ggufmerge.sources.ollama import OllamaSettings, blob_path

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.engine.planner import Opened
    from ggufmerge.files.output import Output
    from ggufmerge.recipe import Recipe


class ForOllama:
    """The part of one build that is for Ollama: a sink. PlanError when the name is not one that Ollama takes.

    output: the file that the user wants, None when the model is to go to Ollama only.  name: of the model in Ollama.
    projector: where a projector lies beside the output that the Modelfile names, too.
    """

    def __init__(
        self,
        output: Path | None,
        name: str | None,
        *,
        modelfile: bool,
        overwrite: bool,
        projector: Path | None = None,
    ) -> None:
        # whether the name is taken is asked in `check`, which knows of an interrupted run of the same build
        self.place = destination(name, overwrite=True) if name is not None else None
        self._wanted, self._overwrite, self._projector = output, overwrite, projector
        self._modelfile = modelfile and output is not None
        if output is not None:
            file_name(output)  # PlanError for a path that names none
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

    def targets(self) -> list[Path]:
        return [modelfile_path(self.output)] if self._modelfile else []

    def inputs(self) -> list[Path]:
        return []

    def check(self, plan: Plan, opened: Opened, output: Output) -> list[str]:
        """Warnings; PlanError when Ollama would refuse the result or has no space for it, or a name is taken."""
        if self.place is None and not self._modelfile:
            return []
        if self._modelfile:
            path = modelfile_path(self.output)
            check_modelfile(self.output, overwrite=self._overwrite or output.owns(str(path)))
        self._settings, warnings = inherited(opened.sources, plan.metadata)
        if self._wanted is None and isinstance(self.place, Store) and output.decision.move is Move.START:
            self.output.unlink(missing_ok=True)  # in the store it is nobody's, and the build writes it anew
        if self.place is not None:
            self.place.overwrite = self._overwrite or output.owns(_claim(self.place))
            self.place.check_name()
            _check_planned(plan, opened)
        if isinstance(self.place, Store) and self._wanted is not None:
            self.place.check_space(self._wanted.parent, plan.nbytes)
        return warnings

    def finish(self, report: BuildReport, output: Output) -> BuildReport:
        """Write the Modelfile and give the model to Ollama; `facts` and `lines` then tell of it. The report with the
        place where the file is now.
        """
        if self._modelfile:
            output.claim(str(modelfile_path(report.output)))
            path = write_modelfile(report.output, self._settings, overwrite=self._overwrite, projector=self._projector)
            self.facts["modelfile"] = str(path)
        if self.place is None:
            return report
        if output.record.taken is not None:  # an interrupted run has come as far as this
            done = Installed(**output.record.taken)
        else:
            output.claim(_claim(self.place))
            self.place.overwrite = self._overwrite
            try:
                with _advancing(f"giving {self.place.name} to Ollama", report.nbytes) as advance:
                    done = self.place.add(report.output, self._settings, move=self._wanted is None, advance=advance)
            except BaseException:
                if report.output.exists():
                    complain(f"the merged model is complete: {report.output}")
                raise
            if self._wanted is None:
                output.give_away(asdict(done))
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


def _claim(place: Store | Server) -> str:
    return f"ollama:{place.name}@{place}"


def check_recipe(recipe: Recipe, name: str, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
    """PlanError when the result of a recipe could not go into Ollama; nothing is built."""
    from ggufmerge.engine.documents import planned_documents

    destination(name, overwrite=overwrite)
    with planned_documents(recipe, **wanted) as documents:
        _check_planned(documents.final, documents.opened)


def _check_planned(plan: Plan, opened: Opened) -> None:
    """PlanError when Ollama would refuse the result of a plan; opened: what it reads from."""
    from ggufmerge.engine import header, vocabulary
    from ggufmerge.files import MetadataEditor

    editor = vocabulary.apply(opened.alignment, MetadataEditor(opened.sources[0].file.metadata))
    check_content({t.name: t.type for t in plan.tensors}, header.apply(plan.metadata, editor))


@contextmanager
def _advancing(text: str, total: int) -> Iterator[Advance]:
    """A bar on standard error while something slow goes on; nothing where nobody watches."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
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
