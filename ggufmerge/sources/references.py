"""What a recipe writes for a model, and the file that it leads to.

A reference is a path, or `scheme:name` for models that another program keeps: `ollama:llama3.2:3b`. A scheme is a
function `(name) -> Located`, named in `SCHEMES` and imported when a reference has that scheme. Anything else in front
of a colon is part of a path.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufmerge.errors import PlanError

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


def _path(path: str, folder: str | os.PathLike[str]) -> Path:
    try:
        found = Path(folder) / Path(path).expanduser()
    except RuntimeError:  # ~ of a user who does not exist
        raise PlanError(f"{path}: there is no such home folder; write the whole path") from None
    with contextlib.suppress(OSError):  # a folder that may not be read: opening the file says so
        if not found.exists():
            raise PlanError(f"{found}: no such file; models are paths of GGUF files, starting from the recipe's folder")
    return found
