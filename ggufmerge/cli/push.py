"""`ggufmerge push`: a model and its card to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.options import DryRun, Json, Overwrite

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.engine.planner import Opened
    from ggufmerge.files.output import Output
    from ggufmerge.places.hub.upload import Upload

HELP = """Upload a model to the Hugging Face Hub as OWNER/NAME, with a model card made from what the file says.

[bold]Examples[/bold]

  ggufmerge push merged.gguf me/merged-GGUF --dry-run

  ggufmerge push merged-00001-of-00003.gguf me/merged-GGUF --private

  ggufmerge push merged.gguf me/merged-GGUF --evaluation scores.json

Files are named by the GGUF naming convention; all go into one commit. Log in with `hf auth login` or set HF_TOKEN. An
evaluation comes from `ggufmerge eval merged.gguf --text wiki.txt --json > scores.json`.
"""


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .gguf file.", show_default=False)],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.", show_default=False)],
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation",
            metavar="JSON",
            help="Show these results: a file with the output of `ggufmerge eval --json`.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private if it is new.")] = False,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Title of the commit.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    from ggufmerge.cli.terminal import print_json
    from ggufmerge.places.hub.upload import plan_upload
    from ggufmerge.places.hub.upload import push as carry_out
    from ggufmerge.places.references import find
    from ggufmerge.report.model_card import read_evaluation

    scores = read_evaluation(evaluation) if evaluation else None
    upload = plan_upload(find(str(file)).path, repo, evaluation=scores, overwrite=overwrite)
    url = None if dry_run else carry_out(upload, private=private, message=message)
    if json:
        print_json(facts_of(upload, url))
    else:
        show_upload(upload, url)


Card = Annotated[
    Path | None, typer.Option("--card", metavar="FILE", help="Write a model card, like a README.md on the Hub.")
]
PushTo = Annotated[
    str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload the result and a model card to the Hub.")
]
PushDryRun = Annotated[
    bool, typer.Option("--push-dry-run", help="Build, but only show what --push would upload.", show_default=False)
]


class ForHub:
    """The part of one build that is for the Hub: a sink. PlanError, before work starts, for what can be known then: a
    card in the way, no name of a repository, nobody logged in.
    """

    def __init__(self, card: Path | None, repo: str | None, *, dry_run: bool, overwrite: bool) -> None:
        if dry_run and repo is None:
            raise typer.BadParameter("needs --push OWNER/NAME", param_hint="--push-dry-run")
        self._card, self._repo, self._dry_run, self._overwrite = card, repo, dry_run, overwrite
        self._upload: Upload | None = None
        self.facts: dict[str, Any] = {}
        if repo is not None:
            from ggufmerge.places.hub.upload import check_login, check_repo_name

            check_repo_name(repo)
            check_login(required=not dry_run)

    def targets(self) -> list[Path]:
        return [self._card] if self._card is not None else []

    def inputs(self) -> list[Path]:
        return []

    def check(self, plan: Plan, opened: Opened, output: Output) -> list[str]:
        """PlanError when the card is in the way."""
        from ggufmerge.files import check_target

        if self._card is not None:
            check_target(self._card, overwrite=self._overwrite or output.owns(str(self._card)))
        return []

    def finish(self, report: BuildReport, output: Output) -> BuildReport:
        """Write the card, upload; `facts` and `show` then tell of it."""
        if self._card is not None:
            output.claim(str(self._card))
            from ggufmerge.files import open_gguf
            from ggufmerge.files.writer import write_new
            from ggufmerge.report.model_card import model_card

            with open_gguf(report.output) as file:
                text = model_card(file).encode()
            write_new(self._card, text, overwrite=self._overwrite)
            self.facts["card"] = str(self._card)
        if self._repo is None:
            return report
        from ggufmerge.cli.terminal import complain, show_warnings
        from ggufmerge.places.hub.upload import plan_upload
        from ggufmerge.places.hub.upload import push as carry_out

        try:
            self._upload = plan_upload(report.output, self._repo, overwrite=self._overwrite)
            show_warnings(self._upload.notes)
            url = None if self._dry_run else carry_out(self._upload)
        except BaseException:
            again = f"ggufmerge push {report.output} {self._repo}"
            complain(f"the merged model is complete: {report.output}; upload it with {again}")
            raise
        self.facts["push"] = facts_of(self._upload, url)
        return report

    def show(self) -> None:
        """What was done, for people."""
        from ggufmerge.cli.terminal import say

        if path := self.facts.get("card"):
            say(f"{path}: model card")
        if self._upload is not None:
            show_upload(self._upload, self.facts["push"]["url"])


def facts_of(upload: Upload, url: str | None) -> dict[str, Any]:
    return {
        "repo": upload.repo,
        "new": not upload.exists,
        "uploads": {name: str(path) for name, path in upload.files.items()},
        "nbytes": upload.nbytes,
        "card": upload.card,
        "warnings": list(upload.notes),
        "url": url,
    }


def show_upload(upload: Upload, url: str | None) -> None:
    """What was uploaded to `url`, or, without it, what would be."""
    from ggufmerge.cli.facts import space
    from ggufmerge.cli.terminal import say, show_table, show_warnings, tell
    from ggufmerge.text import size

    show_warnings(upload.notes)
    rows = [(name, str(path), size(path.stat().st_size)) for name, path in upload.files.items()]
    if upload.card is not None:
        rows.append(("README.md", "model card", size(len(upload.card.encode()))))
    show_table((f"in {upload.repo}", "from", "size"), rows, numbers=1)
    if url is not None:
        say(url)
        return
    if upload.card is not None:
        say(*upload.card.strip("\n").split("\n"))
        space()
    state = "exists" if upload.exists else "would be created"
    tell([f"nothing was uploaded; the repository {state}: {upload.repo}"])
