"""A model card beside a finished file, and an upload of both to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufmerge.files import check_target, open_gguf
from ggufmerge.files.writer import write_new
from ggufmerge.places.hub.upload import Upload, check_login, check_repo_name, plan_upload, push
from ggufmerge.report import model_card
from ggufmerge.sinks.telling import Telling

if TYPE_CHECKING:
    from ggufmerge.files.output import Output
    from ggufmerge.planning.opened import Opened
    from ggufmerge.planning.plan import Plan
    from ggufmerge.running.report import BuildReport


class CardSink:
    """Writes a model card, like the README.md of a repository on the Hub.

    card: its file, which must not be there unless `overwrite` is set.
    """

    def __init__(self, card: Path, *, overwrite: bool = False) -> None:
        self._card, self._overwrite = Path(card), overwrite
        self.facts: dict[str, Any] = {}

    def targets(self) -> list[Path]:
        return [self._card]

    def inputs(self) -> list[Path]:
        return []

    def check(self, plan: Plan, opened: Opened, output: Output) -> list[str]:
        """PlanError when the card is in the way of another file."""
        check_target(self._card, overwrite=self._overwrite or output.owns(str(self._card)))
        return []

    def finish(self, report: BuildReport, output: Output) -> BuildReport:
        """Write it; `facts` and `lines` then tell of it."""
        output.claim(str(self._card))
        with open_gguf(report.output) as file:
            text = model_card.model_card(file).encode()
        write_new(self._card, text, overwrite=self._overwrite)
        self.facts["card"] = str(self._card)
        return report

    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        if path := self.facts.get("card"):
            yield f"{path}: model card"


class HubSink:
    """Uploads the files and a model card to a repository of the Hub.

    repo: OWNER/NAME.  dry_run: only look what would be uploaded.  overwrite: replace what is there under these names.
    PlanError, before work starts, for a name that cannot be one and when nobody is logged in.
    upload, url: what was uploaded, and where it is; None before, and without an upload.
    """

    def __init__(
        self, repo: str, *, dry_run: bool = False, overwrite: bool = False, telling: Telling | None = None
    ) -> None:
        self._repo, self._dry_run, self._overwrite = repo, dry_run, overwrite
        self._telling = telling or Telling()
        self.upload: Upload | None = None
        self.url: str | None = None
        check_repo_name(repo)
        check_login(required=not dry_run)

    def targets(self) -> list[Path]:
        return []

    def inputs(self) -> list[Path]:
        return []

    def check(self, plan: Plan, opened: Opened, output: Output) -> list[str]:
        return []

    def finish(self, report: BuildReport, output: Output) -> BuildReport:
        """Upload."""
        try:
            self.upload = plan_upload(report.output, self._repo, overwrite=self._overwrite)
            self._telling.warn(self.upload.notes)
            self.url = None if self._dry_run else push(self.upload)
        except BaseException as error:
            again = f"ggufmerge push {report.output} {self._repo}"
            line = f"the merged model is complete: {report.output}; upload it with {again}"
            error.add_note(line)
            self._telling.complain(line)
            raise
        return replace(report, warnings=(*report.warnings, *self.upload.notes))
