"""What a recipe writes for a model, and the file that it leads to.

A reference is a path, or `scheme:name` for models that another program keeps: `ollama:llama3.2:3b`. A scheme is a
function `(name) -> Located` that `schemes.finder` imports when a reference has that scheme. Anything else in front of a
colon is part of a path.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files.absent import absent
from ggufmerge.places.schemes import finder
from ggufmerge.sources.located import Located


def find(reference: str, folder: str | os.PathLike[str] = ".") -> Located:
    """The file of a reference; a path starts from `folder` and may begin with `~`.

    PlanError says why there is none, and what to do about it.
    """
    scheme, colon, name = reference.partition(":")
    look_up = finder(scheme) if colon else None
    return look_up(name) if look_up else Located(_path(reference, folder))


def locate(path: str, folder: str | os.PathLike[str]) -> Path:
    """Where a recipe's path or reference leads; PlanError when there is no such file."""
    return find(path, folder).path


def check_found(wanted: Iterable[tuple[str, str]], folder: str | os.PathLike[str] = ".") -> None:
    """PlanError that names all the references that lead nowhere, not only the first one.

    wanted: (where, reference) pairs; `where` is what the complaint begins with, such as `recipe.yaml:7:5` or an option,
    "" for nothing. What may have to be downloaded first is not looked for.
    """
    lines: dict[str, None] = {}
    for where, reference in dict.fromkeys(wanted):
        if not reference.startswith("hf:"):
            try:
                find(reference, folder)
            except GgufmergeError as error:
                lines.update(dict.fromkeys(error.at(where).lines))
    if lines:
        raise PlanError(*lines)


def _path(path: str, folder: str | os.PathLike[str]) -> Path:
    try:
        found = Path(folder) / Path(path).expanduser()
    except RuntimeError:  # ~ of a user who does not exist
        raise PlanError(f"{path}: there is no such home folder; write the whole path") from None
    with contextlib.suppress(OSError):  # a folder that may not be read: opening the file says so
        if not found.exists():
            raise PlanError(f"{path}: {_absent(path, found, folder)}")
    return found


def _absent(path: str, found: Path, folder: str | os.PathLike[str]) -> str:
    """Why there is no such file, and what may have been meant."""
    from ggufmerge.places.guesses import meaning

    if guess := meaning(path, Path(folder)):
        return f"no such file; {guess}"
    if Path(folder).resolve() != Path.cwd() and Path(path).exists():
        return f'no such file; paths start from the recipe\'s folder: write "{os.path.relpath(path, folder)}"'
    return absent(found, written=path)
