"""Uploads a model to the Hugging Face Hub: its files under conventional names and a model card, in one commit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files import open_gguf
from ggufmerge.places.hub.download import LOG_IN, Hub, UnreachableError
from ggufmerge.report.model_card import CARD, model_card
from ggufmerge.report.naming import conventional_names


@dataclass(frozen=True)
class Upload:
    """What would be uploaded, and is by `push`.

    files: name in the repository -> file.  card: text of its README.md, None when the repository has one that is kept.
    exists: whether the repository does, as far as the Hub could be asked.  notes: what the user should know.
    """

    repo: str
    files: Mapping[str, Path]
    card: str | None
    exists: bool
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def plan_upload(
    model: str | os.PathLike[str],
    repo: str,
    *,
    evaluation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Upload:
    """What uploading a GGUF file (of a split model the first one) to `repo`, owner/name, would do.

    evaluation: for the card, see `report.model_card`.  overwrite: replace files of the same name and the README.md.
    PlanError when the repository has such a file and `overwrite` is not given.
    """
    check_repo_name(repo)
    with open_gguf(model) as file:
        names = conventional_names(file)
        card: str | None = model_card(file, names, evaluation)
        misfits = [f"{file.path}: {line}" for line in file.metadata.misfits()]
        files = dict(zip(names, file.paths, strict=True))
    existing, notes = _existing(repo)
    taken = [name for name in names if name in (existing or ())]
    if taken and not overwrite:
        raise PlanError(f"{repo}: has {', '.join(taken)} already: use --overwrite to replace it")
    if CARD in (existing or ()) and not overwrite:
        card = None
        notes.append(f"{repo}: its {CARD} is kept; use --overwrite to replace it by the new model card")
    return Upload(repo, files, card, existing is not None, (*misfits, *notes))


def push(upload: Upload, *, private: bool = False, message: str | None = None) -> str:
    """Carry out an upload, in one commit, creating the repository if need be; gives the address of the commit.

    private: whether a repository that is created is. PlanError when the Hub refuses.
    """
    hub, label = Hub(), f"push to {upload.repo}"
    from huggingface_hub import CommitOperationAdd

    added = [CommitOperationAdd(name, path) for name, path in upload.files.items()]
    if upload.card is not None:
        added.append(CommitOperationAdd(CARD, upload.card.encode()))
    try:
        hub.api.create_repo(upload.repo, private=private, exist_ok=True)
        done = hub.api.create_commit(upload.repo, added, commit_message=message or f"Upload {next(iter(upload.files))}")
    except Exception as error:
        raise hub.explained(error, upload.repo, label) from None
    return str(done.commit_url)


def check_repo_name(repo: str) -> None:
    """PlanError for what is no owner/name."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]{1,96}", repo, re.ASCII):
        raise PlanError(f"{repo!r} is not a repository on the Hub: write owner/name")


def check_login(*, required: bool) -> None:
    """If one is required: GgufmergeError when huggingface_hub is not installed, PlanError when it knows no token."""
    if not required:
        return
    Hub()
    from huggingface_hub import get_token

    if get_token() is None:
        raise PlanError(f"nobody is logged in to the Hub: {LOG_IN}")


def _existing(repo: str) -> tuple[list[str] | None, list[str]]:
    """The files of a repository, None if there is none to be seen; and a note when the Hub cannot be asked."""
    label = f"push to {repo}"
    try:
        hub = Hub()
    except GgufmergeError as error:  # who only wants to see the card needs no package; an upload says it again
        return None, [f"{label}: whether there is such a repository is not known: {error}"]
    try:
        return (hub.files(repo, None, label) if hub.exists(repo, label) else None), []
    except UnreachableError as error:
        return None, [str(error)]
