"""`ggufmerge push`: a model and its card to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.options import DryRun, Json, Overwrite

if TYPE_CHECKING:
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
