"""A copy of a projector for images or sound beside a finished file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufmerge.files.writer import same_file
from ggufmerge.places.projector import check_projector, copy_projector, projector_path, projector_warnings
from ggufmerge.places.references import check_found, find

if TYPE_CHECKING:
    from ggufmerge.files.output import Output
    from ggufmerge.planning.opened import Opened
    from ggufmerge.planning.plan import Plan
    from ggufmerge.running.report import BuildReport


class ProjectorSink:
    """Copies a projector beside an output. PlanError or FormatError when the file is not a projector.

    projector: the file, None for no copy.  output: what it is copied beside, if that is a file.
    path: of the copy, None without one.
    """

    def __init__(self, projector: Path | None, output: Path | None, *, overwrite: bool = False) -> None:
        if projector is not None:
            check_found([("--mmproj", str(projector))])
            projector = find(str(projector)).path
            check_projector(projector)
        self._projector, self._output, self._overwrite = projector, output, overwrite
        self.path = projector_path(output) if projector is not None and output is not None else None
        self.facts: dict[str, Any] = {}

    def targets(self) -> list[Path]:
        if self.path is None or self._projector is None or same_file(self.path, self._projector):
            return []  # a projector that is there already is left alone
        return [self.path]

    def inputs(self) -> list[Path]:
        return [self._projector] if self._projector is not None else []

    def check(self, plan: Plan, opened: Opened, output: Output) -> list[str]:
        """Warnings about the projectors of the parents; PlanError when the copy is in the way of another file."""
        if self._projector is not None and self._output is not None:
            owned = self._overwrite or output.owns(str(self.path))
            check_projector(self._projector, self._output, overwrite=owned)
        return projector_warnings(opened.sources, self._projector)

    def finish(self, report: BuildReport, output: Output) -> BuildReport:
        """Copy it; `facts` and `lines` then tell of it."""
        if self._projector is not None and self._output is not None:
            output.claim(str(self.path))
            copy = copy_projector(self._projector, self._output, overwrite=self._overwrite)
            self.facts["mmproj"] = str(copy)
        return report

    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        if "mmproj" in self.facts:
            yield f"{self.facts['mmproj']}: for images or sound, a copy of {self._projector}"
