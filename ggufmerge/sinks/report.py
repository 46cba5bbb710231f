"""A report as a web page beside a finished file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ggufmerge.files import check_target
from ggufmerge.files.writer import write_new
from ggufmerge.report.html import is_report
from ggufmerge.sinks.telling import Telling

if TYPE_CHECKING:
    from ggufmerge.files.output import Output
    from ggufmerge.planning.opened import Opened
    from ggufmerge.planning.plan import Plan
    from ggufmerge.running.report import BuildReport


class ReportSink:
    """Keeps the plan for what is told of a build, and writes a report of it, the last of all sinks.

    path: of the report, which must not be there unless `overwrite` is set; None for no report.
    made: the report of a build that followed a plan, as a text.
    plan: what was built; None before the check.
    """

    def __init__(
        self,
        path: Path | None,
        made: Callable[[Plan, BuildReport], str],
        *,
        overwrite: bool = False,
        telling: Telling | None = None,
    ) -> None:
        self._path, self._made, self._overwrite = path, made, overwrite
        self._telling = telling or Telling()
        self.plan: Plan | None = None
        self._written = False

    def targets(self) -> list[Path]:
        return [] if self._path is None else [self._path]

    def inputs(self) -> list[Path]:
        return []

    def check(self, plan: Plan, opened: Opened, output: Output) -> list[str]:
        """PlanError or OutputError when no file of this name can be written."""
        self.plan = plan
        if self._path is not None:
            check_target(self._path, overwrite=self._overwrite or output.owns(str(self._path)))
        return []

    def finish(self, report: BuildReport, output: Output) -> BuildReport:
        """Write it; `lines` then tells of it."""
        if self._path is None:
            return report
        assert self.plan is not None, "a build checks its sinks first"
        # what an interrupted run has written is not the same, for it took another time
        own = output.owns(str(self._path)) and is_report(self._path)
        output.claim(str(self._path))
        try:
            write_new(self._path, self._made(self.plan, report).encode(), overwrite=self._overwrite or own)
        except BaseException as error:
            line = f"the model is complete: {report.output}; the same command again writes the report"
            error.add_note(line)
            self._telling.complain(line)
            raise
        self._written = True
        return report

    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        if self._written:
            yield f"{self._path}: report"
