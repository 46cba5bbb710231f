"""A finished file for Ollama: a Modelfile beside it, and the model in a store or on a server."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files.journal import Move
from ggufmerge.files.small import file_name
from ggufmerge.formats.layers import is_without_layers
from ggufmerge.places.ollama.destination import destination
from ggufmerge.places.ollama.modelfile import check_modelfile, modelfile_path, write_modelfile
from ggufmerge.places.ollama.names import OllamaName
from ggufmerge.places.ollama.publish import Store
from ggufmerge.places.ollama.server import Installed, Server
from ggufmerge.places.ollama.settings import check_content, completed, inherited, prompt_warnings
from ggufmerge.places.ollama.store import OllamaSettings, blob_path
from ggufmerge.sinks.telling import Telling

if TYPE_CHECKING:
    from ggufmerge.files.metadata import KeyValues
    from ggufmerge.files.output import Output
    from ggufmerge.planning.opened import Opened
    from ggufmerge.planning.plan import Plan
    from ggufmerge.recipe import Recipe
    from ggufmerge.running.report import BuildReport


class OllamaSink:
    """Writes a Modelfile and gives a model to Ollama. PlanError when the name is not one that Ollama takes.

    output: the file that is built, None when the model is to go to Ollama only; `output` then says where it is built.
    name: of the model in Ollama, None for a Modelfile only.  overwrite: replace a Modelfile and a model of this name.
    projector: where a projector lies beside the output that the Modelfile names, too.
    """

    def __init__(
        self,
        output: Path | None,
        name: str | None = None,
        *,
        modelfile: bool = True,
        overwrite: bool = False,
        projector: Path | None = None,
        telling: Telling | None = None,
    ) -> None:
        output = Path(output) if output is not None else None
        self._telling = telling or Telling()
        # whether the name is taken is asked in `check`, which knows of an interrupted run of the same build
        self.place = destination(name, overwrite=True) if name is not None else None
        self._name = OllamaName.parse(name) if name is not None else None
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
        if is_without_layers(opened.sources[0].file):
            if self.place is not None:
                what = f"{plan.architecture} is no language model, so Ollama cannot run it; leave out --ollama"
                raise PlanError(f"{opened.sources[0].label}: {what}")
            self._modelfile = False
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
            metadata = _check_planned(plan, opened)
            warnings += prompt_warnings(completed(self._settings, metadata), metadata, self._version())
        if isinstance(self.place, Store) and self._wanted is not None:
            self.place.check_space(self._wanted.parent, plan.nbytes)
        return warnings + (self.place.notes if self.place is not None else [])

    def _version(self) -> tuple[int, ...] | None:
        """Of the server that will run the model, as far as that is known."""
        server = self.place.server if isinstance(self.place, Store) else self.place
        return server.version() if server is not None else None

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
            done = self._given(self.place, report, output)
            if self._wanted is None:
                self._remove_modelfile(output)
                output.give_away(asdict(done))
        self.facts["ollama"] = asdict(done)
        if self._wanted is not None:
            return report
        if done.is_in_store:
            blob = blob_path(Path(done.place), done.digest)
            return replace(report, output=blob, files=(blob,))
        return replace(report, output=Path(done.name), files=())

    def _given(self, place: Store | Server, report: BuildReport, output: Output) -> Installed:
        """Give the finished file to Ollama; when that fails, say where it is and how to go on."""
        place.overwrite, place.claimed = self._overwrite, output.owns(_claim(place))
        output.claim(_claim(place))
        known = len(place.notes)
        try:
            with self._telling.advancing(f"giving {place.name} to Ollama", report.nbytes) as advance:
                done = place.add(report.output, self._settings, move=self._wanted is None, advance=advance)
        except BaseException as error:
            if report.output.exists():
                by_hand = self._by_hand(place, report.output, output) if isinstance(error, GgufmergeError) else ""
                line = f"the merged model is complete: {report.output}; give the same command again{by_hand}"
                error.add_note(line)
                self._telling.complain(line)
            raise
        self._telling.warn(place.notes[known:])
        return done

    def _by_hand(self, place: Store | Server, path: Path, output: Output) -> str:
        """How to import a file without this program; a Modelfile is written for that unless the user wants none."""
        if self._wanted is None and isinstance(place, Store):
            return ""  # the file lies inside the store, where it does not stay for ever
        modelfile = modelfile_path(path)
        if self._wanted is None and (output.owns(str(modelfile)) or not os.path.lexists(modelfile)):
            with suppress(GgufmergeError, OSError):
                output.claim(str(modelfile))
                write_modelfile(path, self._settings, overwrite=True)
        if self._modelfile or output.owns(str(modelfile)):
            return f", or import it: ollama create {place.name} -f {_in_a_command(modelfile)}"
        return f"; or import it: ollama create {place.name} -f FILE, with the line FROM ./{path.name} in FILE"

    def _remove_modelfile(self, output: Output) -> None:
        """Remove the Modelfile of an earlier failure, which is for a file that is removed, too."""
        path = modelfile_path(output.path)
        if output.owns(str(path)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @property
    def result(self) -> str | None:
        """What to call the result when there is no file but Ollama's: its name; None otherwise."""
        done = self.facts.get("ollama")
        return f"ollama:{done['name']}" if done and self._wanted is None else None

    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        if path := self.facts.get("modelfile"):
            yield f"{path}: for ollama create"
        if done := self.facts.get("ollama"):
            name = done["name"]
            if self._name is not None and OllamaName.parse(name) != self._name:
                yield f"{self._name}: is spelled {name} in Ollama, as models that are there already are"
            if done["seen"]:
                yield f"{name}: is in Ollama ({done['place']}); to run it: ollama run {name}"
            else:
                yield (
                    f"{name}: is in the store {done['place']}; no Ollama server answers now, and one with another "
                    f"store will not see it; to run it: ollama run {name}"
                )


def _in_a_command(path: Path) -> str:
    """A path as a shell takes it for one word."""
    return f'"{path}"' if os.name == "nt" else shlex.quote(str(path))


def _claim(place: Store | Server) -> str:
    return f"ollama:{place.name.folded}@{place}"


def check_recipe(recipe: Recipe, name: str, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
    """PlanError when the result of a recipe could not go into Ollama; nothing is built."""
    from ggufmerge.engine.documents import planned_documents

    destination(name, overwrite=overwrite)
    with planned_documents(recipe, **wanted) as documents:
        _check_planned(documents.final, documents.opened)


def _check_planned(plan: Plan, opened: Opened) -> KeyValues:
    """The metadata of the result of a plan; PlanError when Ollama would refuse it. opened: what it reads from."""
    from ggufmerge.planning.opened import header_of

    metadata, _ = header_of(plan, opened)
    check_content({t.name: t.type for t in plan.tensors}, metadata)
    return metadata
