"""A finished file in the folders and settings of LM Studio, llama.cpp, KoboldCpp and text-generation-webui."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufmerge import keys
from ggufmerge.chat.templates import TEMPLATE
from ggufmerge.engine.documents import planned_documents
from ggufmerge.files import ShardName, open_gguf
from ggufmerge.files.writer import same_file
from ggufmerge.places.homes import Entry, Home, Model, Placed, find_home, lmstudio_home
from ggufmerge.places.homes.llamacpp import arguments, check_alone, command_line
from ggufmerge.places.homes.names import safe_stem
from ggufmerge.places.homes.placing import (
    check_entry,
    check_folder,
    check_space,
    folders_for,
    place_files,
    remove_left,
    write_entry,
)
from ggufmerge.places.projector import projector_path
from ggufmerge.planning.opened import header_of

if TYPE_CHECKING:
    from ggufmerge.files.metadata import KeyValues
    from ggufmerge.files.output import Output
    from ggufmerge.files.sharded import SplitLimit
    from ggufmerge.planning.opened import Opened
    from ggufmerge.planning.plan import Plan
    from ggufmerge.recipe import Recipe
    from ggufmerge.running.report import BuildReport


class HomesSink:
    """Puts a model where other programs look for it.

    recipe, wanted: what is built; wanted are the arguments of `build` that win over the recipe: out_type, imatrix,
    rounding.
    output: the file that the user wants, None when the model is to go to its homes only; the first of these then is
    where it is built.  lmstudio, to, llama_cpp: the options.  projector: one that goes with the model.
    PlanError for names and places that cannot be.
    """

    def __init__(
        self,
        recipe: Recipe,
        wanted: Mapping[str, Any],
        output: Path | None,
        *,
        lmstudio: str | None = None,
        to: Sequence[Path] = (),
        llama_cpp: bool = False,
        split: SplitLimit | None = None,
        projector: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        output, to = Path(output) if output is not None else None, [Path(place) for place in to]
        self.output, self._overwrite, self._projector = output, overwrite, projector
        beside = output is not None and projector is not None
        self._built_projector = _absolute(projector_path(output)) if beside and output is not None else None
        self._llama_cpp = llama_cpp
        self.homes: list[Home] = []
        self.facts: dict[str, Any] = {}
        if lmstudio is not None or to:
            with planned_documents(recipe, **wanted) as documents:
                self._plan = documents.final
            self.homes = self._find(lmstudio, to, split)
        self._in_place = bool(self.homes) and output is None
        self._built: list[Path] = []
        if self._in_place:
            self.output = self.homes[0].folder / f"{_stem(self.homes[0].files[0])}.gguf"
            self._built = list(self.homes[0].files)
            self._built_projector = self.homes[0].projector
        elif self.homes and output is not None:
            self._built = _files(output, split, self._plan)

    @contextmanager
    def folders(self) -> Iterator[None]:
        """Makes the folder that the model is built in. When the block fails, it is gone if nothing is in it, and so is
        what an interrupted run has left in the other homes; a run that goes on makes that again.
        """
        made = self._built if self._in_place else []
        if self._in_place:
            check_folder(self.homes[0].root, made, overwrite=True)
        try:
            with folders_for(made):
                yield
        except BaseException:
            remove_left([path for home in self.homes for path in self._copies(home)] + self._entries())
            raise

    def try_out(self, recipe: Recipe, wanted: Mapping[str, Any]) -> list[str]:
        """Warnings, and PlanError for all that a build would refuse; nothing is built."""
        if not self.homes:
            return []
        if self._in_place:
            check_folder(self.homes[0].root, self._built, overwrite=self._overwrite)
        with planned_documents(recipe, **wanted) as documents:
            return self._check(documents.final, documents.opened, lambda _: self._overwrite)

    def targets(self) -> list[Path]:
        files = [path for home in self.homes for path in self._copies(home)]
        # a file that an earlier build has linked to its output is not that output, which gets its name by a rename
        return [path for path in files if not any(_is_link(path, b) for b in self._built)] + self._entries()

    def inputs(self) -> list[Path]:
        return [self._projector] if self._projector is not None else []

    def check(self, plan: Plan, opened: Opened, output: Output) -> list[str]:
        """Warnings; PlanError when a name is taken, or a folder or file of settings cannot be written."""
        return self._check(plan, opened, lambda name: self._overwrite or output.owns(name)) if self.homes else []

    def _check(self, plan: Plan, opened: Opened, may_replace: Callable[[str], bool]) -> list[str]:
        context, template = _told(header_of(plan, opened)[0], plan.architecture)
        for home in self.homes:
            for path in self._copies(home):
                check_folder(home.root, [path], overwrite=may_replace(str(path)))
            check_alone(home)
            if not self._is_built(home):
                check_space(home.root, self._built[0].parent, plan.nbytes)
            if home.entry is not None:
                placed = Placed(home.files[0], home.projector, context, template)
                check_entry(home.entry, placed, overwrite=may_replace(_claim(home.entry)))
        said = dict.fromkeys(home.template for home in self.homes if home.template)
        if template or not said:
            return []
        return [f"the result has no chat template: {' and '.join(map(str, said))}"]

    def finish(self, report: BuildReport, output: Output) -> BuildReport:
        """Put the files and entries where they belong; `facts` and `lines` then tell of it."""
        if not self.homes and not self._llama_cpp:
            return report
        with open_gguf(report.output) as file:
            context, template = _told(file.metadata, file.architecture)
        for home in self.homes:
            copies = self._copies(home)
            with folders_for(copies):
                if self._projector is not None and home.projector in copies:
                    self._put([self._projector], [home.projector], output, link=False)
                if not self._is_built(home):
                    self._put(report.files, home.files, output)
                if home.entry is not None:
                    may_replace = self._overwrite or output.owns(_claim(home.entry))
                    output.claim(_claim(home.entry))
                    write_entry(
                        home.entry, Placed(home.files[0], home.projector, context, template), overwrite=may_replace
                    )
        self.facts |= self.planned()
        if self._llama_cpp:
            words = arguments(Placed(_absolute(report.output), self._built_projector, context, template))
            self.facts["llama_cpp"] = {"command": command_line(words), "arguments": words}
        return report

    def planned(self) -> dict[str, Any]:
        """What would be done, as facts."""
        return {"homes": [home_facts(home) for home in self.homes]} if self.homes else {}

    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        if "homes" in self.facts:
            yield from map(home_line, self.homes)
        if command := self.facts.get("llama_cpp"):
            yield command["command"]

    def _find(self, lmstudio: str | None, to: Sequence[Path], split: SplitLimit | None) -> list[Home]:
        """The homes in the order of their options."""
        shards = len(_files(Path("model.gguf"), split, self._plan)) if split is not None else None
        file_type, projector = str(self._plan.file_type), self._projector is not None
        homes = []
        if lmstudio is not None:
            homes.append(lmstudio_home(lmstudio, file_type, shards=shards, projector=projector))
        if self.output is not None:
            stem = _stem(self.output)
        elif homes:
            stem = _stem(homes[0].files[0])
        else:
            stem = safe_stem(str(self._plan.metadata.get(keys.NAME) or ""))
            stem = stem if stem.lower().endswith(f"-{file_type}".lower()) else f"{stem}-{file_type}"
        for place in sorted(to, key=_is_preset):  # the sort is stable, and an entry names a file that has its place
            home = find_home(place, Model(stem, shards, projector), llama_cpp=self._llama_cpp)
            if _is_preset(place) and (self.output is not None or homes):
                files = tuple(_files(self.output, split, self._plan)) if self.output is not None else homes[0].files
                beside = self._built_projector if self.output is not None else homes[0].projector
                home = replace(home, files=files, projector=beside)
            if home not in homes:  # given twice
                homes.append(home)
        return homes

    def _entries(self) -> list[Path]:
        """The files of settings."""
        return list(dict.fromkeys(home.entry.path for home in self.homes if home.entry is not None))

    def _put(self, sources: Sequence[Path], targets: Sequence[Path], output: Output, *, link: bool = True) -> None:
        for target in targets:
            output.claim(str(target))
        place_files(sources, targets, overwrite=self._overwrite, link=link)

    def _is_built(self, home: Home) -> bool:
        """Whether the build itself puts the model there."""
        return list(home.files) == self._built

    def _copies(self, home: Home) -> list[Path]:
        """The files that are put there when the model is built."""
        files = [] if self._is_built(home) else list(home.files)
        ours = (self._in_place and home is self.homes[0]) or home.projector != self._built_projector
        if home.projector is not None and self._projector is not None and ours:
            files += [] if same_file(home.projector, self._projector) else [home.projector]  # it may be there already
        return files


def _is_link(path: Path, other: Path) -> bool:
    """Whether two different names, in folders that may be the same, are of one file."""
    if not path.is_file() or path.is_symlink() or not same_file(path, other):
        return False
    return path.name.casefold() != other.name.casefold() or not same_file(path.parent, other.parent)


def _is_preset(place: Path) -> bool:
    return place.suffix.lower() == ".ini"


def _claim(entry: Entry) -> str:
    return f"entry:{entry.name}@{entry.path}"


def _told(metadata: KeyValues, architecture: str) -> tuple[int | None, bool]:
    """How many tokens a model was trained for, and whether it has a chat template."""
    template = metadata.text(TEMPLATE)
    return metadata.integer(keys.context_length(architecture)), bool(template)


def _files(output: Path, split: SplitLimit | None, plan: Plan) -> list[Path]:
    """What a build of this output writes, as absolute paths."""
    return [_absolute(path) for path in ([output] if split is None else split.paths(output, plan.tensors))]


def home_line(home: Home) -> str:
    """Where a model is, for which program, and how that is known, for people."""
    entry = f", with {home.entry.name}" if home.entry is not None else ""
    listed = f"; {home.listed}" if home.listed else ""
    return f"{home.files[0]}{entry}: for {home.program or 'any program'} ({home.why}){listed}"


def home_facts(home: Home) -> dict[str, Any]:
    return {
        "program": home.program or None,
        "why": home.why,
        "files": [str(path) for path in home.files],
        "projector": str(home.projector) if home.projector is not None else None,
        "settings": str(home.entry.path) if home.entry is not None else None,
        "entry": home.entry.name if home.entry is not None else None,
    }


def _absolute(path: Path) -> Path:
    """Without `..`, but with the links that the user has named."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _stem(path: Path) -> str:
    """The name of a model's file without shard and suffix."""
    shard = ShardName.parse(path.name)
    if shard is not None:
        return shard.prefix
    return path.name[: -len(".gguf")] if path.name.lower().endswith(".gguf") else path.name
