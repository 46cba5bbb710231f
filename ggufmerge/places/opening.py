"""Opens what a recipe calls a model: finds its file and those of its adapters, and looks at what each of them is."""

from __future__ import annotations

import os
from dataclasses import replace

from ggufmerge.errors import GgufmergeError, PlanError, RoleError
from ggufmerge.files import facts, open_gguf
from ggufmerge.formats.checkpoint import Checkpoint
from ggufmerge.formats.experts import open_model
from ggufmerge.formats.stored import StoredFile
from ggufmerge.places.ollama.store import OllamaSettings, layout_warnings
from ggufmerge.places.references import check_found, find, locate
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.sources.adapters import open_adapter
from ggufmerge.sources.lora import LoraAdapter
from ggufmerge.sources.model import Source


def open_source(reference: ModelReference, folder: str | os.PathLike[str] = ".") -> Source:
    """Open a `ModelReference`: its file and its adapters, with paths starting from `folder`.

    A path may begin with `~`. FormatError and PlanError say which file is not what it should be.
    """
    check_found((("", path) for path in reference.paths), folder)
    located = find(reference.path, folder)
    file = Checkpoint(located.path) if located.path.is_dir() else open_model(located.path)
    adapters: list[LoraAdapter] = []
    try:
        _check_model(file, reference, folder)
        for path in located.adapters:
            adapters.append(open_adapter(path, file))  # noqa: PERF401 - those opened before one fails are closed below
        for adapter in reference.adapters:
            adapters.append(open_adapter(find(adapter.path, folder).path, file, adapter.strength))  # noqa: PERF401 - as above
        source = Source.adapted(str(reference), file, adapters, located)
    except BaseException:
        for opened in (file, *(a.file for a in adapters)):
            opened.close()
        raise
    if isinstance(located.settings, OllamaSettings) and not isinstance(file, Checkpoint):
        located = replace(located, warnings=(*located.warnings, *layout_warnings(str(reference), file)))
        source.located = located
    return source


def is_model(path: str, folder: str | os.PathLike[str] = ".") -> bool:
    """Whether there is a GGUF file that says it is a model."""
    try:
        with open_gguf(locate(path, folder)) as file:
            return facts.kind(file) == "model" and bool(file.architecture)
    except GgufmergeError:
        return False


def _check_model(file: StoredFile, reference: ModelReference, folder: str | os.PathLike[str]) -> None:
    kind = facts.kind(file)
    if kind == "adapter":
        others = [adapter.path for adapter in reference.adapters]
        base = next((path for path in others if is_model(path, folder)), "MODEL.gguf")
        written = "+".join([base, reference.path, *(path for path in others if path != base)])
        what, todo = f"{file.path}: a LoRA adapter, not a model", f"write {written}"
        raise RoleError(what, todo, wanted="model", found="adapter")
    if kind == "imatrix":
        raise PlanError(f"{file.path}: an importance matrix, not a model; give it as --imatrix")
    if not file.tensors:
        raise PlanError(f"{file.path}: holds no tensors, so there is nothing to merge")
