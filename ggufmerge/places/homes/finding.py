"""Which program a folder belongs to, by what is in it."""

from __future__ import annotations

import os
from pathlib import Path

from ggufmerge.errors import PlanError
from ggufmerge.files.writer import same_file
from ggufmerge.places import folders
from ggufmerge.places.homes import koboldcpp, llamacpp, webui
from ggufmerge.places.homes.home import Home, Model
from ggufmerge.places.homes.names import check_stem
from ggufmerge.places.hub import cache as hub_cache
from ggufmerge.places.ollama import store as ollama


def find_home(place: Path, model: Model, *, llama_cpp: bool = False) -> Home:
    """Where a model goes that is to be put into `place`, a folder or a preset file of llama-server's (`.ini`).

    llama_cpp: take a folder that no program has marked for llama.cpp's.
    PlanError when there is no such folder, or a program would not see files that are only put there.
    """
    check_stem(model.stem, f"--to {place}")
    if place.suffix.lower() == ".ini":
        return llamacpp.preset_home(place, model)
    if not place.is_dir():
        hint = "is not a folder" if os.path.lexists(place) else "there is no such folder: create it first"
        raise PlanError(f"--to {place}: {hint}; it takes a folder, or a preset file of llama-server's (.ini)")
    place = Path(os.path.abspath(place))  # noqa: PTH100 - a link that the user names stays
    _check_not_kept(place)
    for recognize in (webui.recognize, koboldcpp.recognize):
        if home := recognize(place, model):
            return home
    if home := llamacpp.recognize(place, model, asked=llama_cpp):
        return home
    return Home(
        program="",
        why="nothing in the folder is a known program's",
        root=place,
        files=tuple(model.files(place)),
        projector=model.projector_in(place),
    )


def _check_not_kept(place: Path) -> None:
    """PlanError for the folders of programs that keep lists of their own."""
    kept = [(root, "Ollama's store", "use --ollama NAME") for root in ollama.candidate_roots()]
    kept += [(root, "LM Studio's folder of models", "use --lmstudio PUBLISHER/NAME") for root in _lmstudio()]
    kept += [
        (hub_cache.cache_folder(), "the cache of the Hugging Face Hub", "give another folder"),
        (folders.llama_cpp_folder(), "llama.cpp's cache, which lists its own downloads only", "give another folder"),
    ]
    for root, what, instead in kept:
        if root.is_dir() and any(same_file(root, folder) for folder in (place, *place.parents)):
            raise PlanError(f"--to {place}: this is in {what}: {instead}")


def _lmstudio() -> list[Path]:
    return [folder for folder in folders.lmstudio_folders() if folder.is_dir()]
