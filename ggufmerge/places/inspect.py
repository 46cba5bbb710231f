"""What a reference leads to, told from its header alone."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from ggufmerge.architectures.memory import memory_need
from ggufmerge.errors import PlanError
from ggufmerge.files import GGUFFile, describe, facts, open_gguf
from ggufmerge.formats.experts import about_stacks, with_stacked_experts
from ggufmerge.formats.imatrix import statistics_facts
from ggufmerge.formats.layers import is_without_layers
from ggufmerge.places.references import find
from ggufmerge.types import TensorType


def inspect(
    reference: str | os.PathLike[str],
    *,
    full: bool = False,
    context: int | None = None,
    cache_type: TensorType = TensorType.F16,
) -> dict[str, Any]:
    """The facts of a GGUF file: a model, adapter or importance matrix; no tensor is read.

    reference: a path (of a split model the first shard), or a name such as "ollama:llama3.2:3b".
    full: give long arrays of the metadata whole. `files.describe` says which facts there are;
        beside them "memory" says what llama.cpp needs to run it, in bytes (`MemoryNeed`), None for what is no language
        model that runs alone, "layout" what is special of the layout of the tensors, None for nothing, and "statistics"
        what an importance matrix or a file of `calibrate` was made of (`formats.imatrix`), None for other files.
    context, cache_type: of which "memory" is told, as in `memory_need`.
    FormatError when it is no GGUF file, PlanError when there is none.
    """
    with open_gguf(find(os.fspath(reference)).path) as file:
        return {
            **describe(file, full=full),
            "layout": _layout(file),
            "memory": _memory(file, context, cache_type),
            "statistics": statistics_facts(file),
        }


def _memory(file: GGUFFile, context: int | None, cache_type: TensorType) -> dict[str, Any] | None:
    if facts.kind(file) != "model":
        return None
    need = memory_need(file.metadata, file.tensors, context, cache_type)
    if need is None:
        return None
    return {**dataclasses.asdict(need), "cache_type": need.cache_type.value, "total": need.total}


def _layout(file: GGUFFile) -> str | None:
    if facts.kind(file) == "model" and file.architecture and is_without_layers(file):
        return "no language model: weights of another kind that other programs keep in GGUF files, as for images"
    try:
        return about_stacks(with_stacked_experts(file).tensors) or None
    except PlanError as error:
        return str(error).removeprefix(f"{file.path}: ")
