"""What a reference leads to, told from its header alone."""

from __future__ import annotations

import os
from typing import Any

from ggufmerge.errors import PlanError
from ggufmerge.files import GGUFFile, describe, facts, open_gguf
from ggufmerge.formats.experts import about_stacks, with_stacked_experts
from ggufmerge.formats.imatrix import statistics_facts
from ggufmerge.formats.layers import is_without_layers
from ggufmerge.places.references import find


def inspect(reference: str | os.PathLike[str], *, full: bool = False) -> dict[str, Any]:
    """The facts of a GGUF file: a model, adapter or importance matrix; no tensor is read.

    reference: a path (of a split model the first shard), or a name such as "ollama:llama3.2:3b".
    full: give long arrays of the metadata whole. `files.describe` says which facts there are;
        beside them "layout" says what is special of the layout of the tensors, None for nothing, and "statistics" what
        an importance matrix or a file of `calibrate` was made of (`formats.imatrix`), None for other files.
    FormatError when it is no GGUF file, PlanError when there is none.
    """
    with open_gguf(find(os.fspath(reference)).path) as file:
        return {**describe(file, full=full), "layout": _layout(file), "statistics": statistics_facts(file)}


def _layout(file: GGUFFile) -> str | None:
    if facts.kind(file) == "model" and file.architecture and is_without_layers(file):
        return "no language model: weights of another kind that other programs keep in GGUF files, as for images"
    try:
        return about_stacks(with_stacked_experts(file).tensors) or None
    except PlanError as error:
        return str(error).removeprefix(f"{file.path}: ")
