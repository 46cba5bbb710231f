"""Projectors: the part of a multi-modal model that makes images or sound into embeddings, in a GGUF file of its own.

Merges leave them alone. The one that the user names is copied beside the result as `mmproj-merged.gguf`, where programs
look for it. Those beside the parents are found by name, as programs do, and only lead to warnings: which one fits the
result better nobody knows before trying.
Source: `conversion/base.py` (`MmprojModel`) and `tools/mtmd/clip-impl.h` of llama.cpp for names and keys.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files import GGUFFile, open_gguf
from ggufmerge.files.atomic import replacing
from ggufmerge.files.writer import exists, same_file
from ggufmerge.places.ollama.modelfile import modelfile_path
from ggufmerge.sources import Source
from ggufmerge.sources.model import content_fingerprint

_WIDTHS = ("clip.vision.projection_dim", "clip.audio.projection_dim")


def projector_path(output: str | os.PathLike[str]) -> Path:
    """`mmproj-merged.gguf` for `merged.gguf` and for its shards."""
    path = modelfile_path(output)
    return path.with_name(f"mmproj-{path.stem}.gguf")


def check_projector(
    projector: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, *, overwrite: bool = False
) -> None:
    """PlanError or FormatError unless the file is a projector and, given an output, may be copied beside it."""
    with open_gguf(projector) as file:
        if not _is_projector(file):
            raise PlanError(f"{file.path}: not a projector; give the mmproj file of one of the models")
    if output is None:
        return
    path = projector_path(output)
    if os.path.lexists(path) and not same_file(path, Path(projector)) and (path.is_dir() or not overwrite):
        raise PlanError(f"{path}: exists: use --overwrite to replace it")


def copy_projector(
    projector: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Copy a projector beside an output, byte for byte, whole or not at all; returns the path of the copy.

    PlanError when there is another file and `overwrite` is not set.
    """
    path = projector_path(output)
    if same_file(path, Path(projector)):
        return path
    if os.path.lexists(path) and not overwrite:
        if filecmp.cmp(path, projector, shallow=False):
            return path
        raise exists(path)
    with Path(projector).open("rb") as original, replacing(path) as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
    return path


def projector_warnings(sources: Sequence[Source], given: str | os.PathLike[str] | None) -> list[str]:
    """What the user should know of the projectors of a merge, one line each. `given`: the one to be copied."""
    beside = {source.label: found for source in sources if (found := _beside(source))}
    warnings = []
    if given is not None:
        with open_gguf(given) as file:
            chosen, fits = content_fingerprint(file), _fits(file, sources[0])
        if not fits:
            warnings.append(f"{given}: makes embeddings of another width than the result has; it will not be of use")
        warnings += [
            f"{label} has another projector in its folder ({_names(found)}) than {Path(given).name}: try which one fits"
            for label, found in beside.items()
            if chosen not in found
        ]
    elif beside:
        label, found = next(iter(beside.items()))
        warnings.append(f"next to {label} is a projector ({_names(found)}): --mmproj FILE copies one for the result")
        warnings += [
            f"the projectors of {label} and {other} differ ({_names(found)}, {_names(theirs)}): try which one fits"
            for other, theirs in beside.items()
            if not found.keys() & theirs.keys()
        ]
    return warnings


def _beside(source: Source) -> dict[str, str]:
    """The projectors in the folder of a source that fit it: fingerprint -> name."""
    folder = source.file.path if source.is_checkpoint else source.file.path.parent
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.gguf")):
        if "mmproj" in path.name.lower():
            with contextlib.suppress(GgufmergeError), open_gguf(path) as file:
                if _is_projector(file) and _fits(file, source):
                    found.setdefault(content_fingerprint(file), path.name)
    return found


def _is_projector(file: GGUFFile) -> bool:
    return file.metadata.text("general.type") == "mmproj" or file.architecture == "clip"


def _fits(file: GGUFFile, source: Source) -> bool:
    """Whether a projector makes embeddings as wide as those of a model, as far as it says."""
    width = source.metadata.integer(f"{source.file.architecture}.embedding_length")
    made = [made for key in _WIDTHS if (made := file.metadata.integer(key)) is not None]
    return width is None or all(other == width for other in made)


def _names(found: dict[str, str]) -> str:
    return ", ".join(found.values())
