"""What a header says, asked by several: each question has one answer, here.

What a file does not say, or says in a way that nobody understands, is told from its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ggufmerge.files.metadata import KeyValues
from ggufmerge.types import FileType, TensorType

FILE_TYPE = "general.file_type"
NAME = "general.name"


class Typed(Protocol):
    """A tensor of which the type is known."""

    @property
    def type(self) -> TensorType: ...


class Header(Protocol):
    """A file of which the header is known."""

    path: Path

    @property
    def metadata(self) -> KeyValues: ...
    @property
    def tensors(self) -> Mapping[str, Typed]: ...


def file_type(file: Header) -> FileType | None:
    """The file type that a file declares if there is such a type, else the one that describes its tensors.

    None when there is neither.
    """
    declared = file.metadata.integer(FILE_TYPE)
    known = None if declared is None else FileType.from_id(declared)
    if known is None and file.tensors:
        known = FileType.of({name: tensor.type for name, tensor in file.tensors.items()})
    return known


def name(file: Header) -> str:
    """What a file calls itself, else its name on disk without the suffix."""
    return file.metadata.text(NAME) or file.path.stem
