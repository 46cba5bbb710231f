"""What a recipe writes for a model, and the file that it leads to.

A reference is a path, or `scheme:name` for models that another program keeps: `ollama:llama3.2:3b`. A scheme is a
function `(name) -> Located`, named in `SCHEMES` and imported when a reference has that scheme. Anything else in front
of a colon is part of a path.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files.absent import absent

if TYPE_CHECKING:
    from ggufmerge.sources.ollama import OllamaSettings

SCHEMES = {  # function in a module of this package
    "ollama": "ollama.find",
    "hf": "hub.find",
    "lmstudio": "folders.find_lmstudio",
    "llama.cpp": "folders.find_llama_cpp",
}


@dataclass(frozen=True)
class Located:
    """Where a reference leads.

    path: the GGUF file, the first one of a split model.
    adapters: LoRA files that belong to the model, to be applied in full.
    ollama: what an Ollama store keeps beside the weights, None for models from elsewhere.
    warnings: what the user should know, one line each.
    """

    path: Path
    adapters: tuple[Path, ...] = ()
    ollama: OllamaSettings | None = None
    warnings: tuple[str, ...] = ()


def find(reference: str, folder: str | os.PathLike[str] = ".") -> Located:
    """The file of a reference; a path starts from `folder` and may begin with `~`.

    PlanError says why there is none, and what to do about it.
    """
    scheme, colon, name = reference.partition(":")
    if colon and scheme in SCHEMES:
        module, _, function = SCHEMES[scheme].rpartition(".")
        located: Located = getattr(importlib.import_module(f"ggufmerge.sources.{module}"), function)(name)
        return located
    return Located(_path(reference, folder))


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
    from ggufmerge.sources.guesses import meaning

    if guess := meaning(path, Path(folder)):
        return f"no such file; {guess}"
    if Path(folder).resolve() != Path.cwd() and Path(path).exists():
        return f'no such file; paths start from the recipe\'s folder: write "{os.path.relpath(path, folder)}"'
    return absent(found, written=path)
