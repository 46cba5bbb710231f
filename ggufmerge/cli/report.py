"""`--report`: what a command found out, as a web page beside what it prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ggufmerge.cli.completion import complete_reports

Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write a report with pictures: a web page (.html) that needs nothing else (extra: report).",
        autocompletion=complete_reports,
    ),
]


class ReportFile:
    """The page that a command is to write, if any.

    GgufmergeError for a name that no page has, and without the extra: before any work is done.
    """

    def __init__(self, path: Path | None, *, overwrite: bool) -> None:
        self.path, self._overwrite = path, overwrite
        if path is not None:
            from ggufmerge.cli.front import check_report_name
            from ggufmerge.report.html import check_drawing

            if path.name:  # what names no file is told of below
                check_report_name(path)
            check_drawing()

    def check(self, inputs: Iterable[Path], files: Sequence[Path] = ()) -> None:
        """PlanError or OutputError when the page cannot be written there, or is one of the files that the command reads
        (`inputs`) or writes.
        """
        from ggufmerge.files import check_target
        from ggufmerge.planning.checks import check_targets

        if self.path is not None:
            check_targets(files, [self.path], list(inputs))
            check_target(self.path, overwrite=self._overwrite)

    def check_models(self, models: Iterable[str], others: Iterable[Path] = ()) -> None:
        """The same where models are read, by the names that were given for them."""
        from ggufmerge.places.references import check_found, find
        from ggufmerge.recipe import ModelReference

        if self.path is None:
            return
        self.check([])  # before a model is looked for, or downloaded
        paths = [path for model in models for path in ModelReference.from_argument(model).paths]
        check_found(("", path) for path in paths)
        self.check([*(find(path).path for path in paths), *others])

    def made(self, own: Mapping[str, Any]) -> str:
        """The page that tells of a command's own facts."""
        from ggufmerge.cli.facts import gathered
        from ggufmerge.report.html import report

        return report(gathered(own))

    def write(self, own: Mapping[str, Any], *, json: bool) -> None:
        """Write it, when all that the command prints is printed, and say so where that is no JSON."""
        from ggufmerge.cli.terminal import tell
        from ggufmerge.files.writer import write_new

        if self.path is not None:
            write_new(self.path, self.made(own).encode(), overwrite=self._overwrite)
            if not json:
                tell([f"{self.path}: report"])
