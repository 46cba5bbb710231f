"""What a header says, asked by several: each question has one answer, here.

What a file does not say, or says in a way that nobody understands, is told from its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ggufmerge import keys
from ggufmerge.files.metadata import KeyValues
from ggufmerge.types import FileType, TensorType


class Described(Protocol):
    """A tensor of which the type and the shape are known."""

    @property
    def type(self) -> TensorType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Header(Protocol):
    """A file of which the header is known."""

    path: Path

    @property
    def metadata(self) -> KeyValues: ...
    @property
    def architecture(self) -> str: ...
    @property
    def tensors(self) -> Mapping[str, Described]: ...


def kind(file: Header) -> str:
    """What a file says it is: "model", "adapter", "imatrix", "mmproj", ...

    A file that does not say is a model if it has an architecture, and nothing known ("") without one.
    """
    return file.metadata.text(keys.TYPE) or ("model" if file.architecture else "")


def file_type(file: Header) -> FileType | None:
    """The file type that a file declares if there is such a type, else the one that describes its tensors.

    None when there is neither.
    """
    types = {name: tensor.type for name, tensor in file.tensors.items()}
    return FileType.describing(types, file.metadata.integer(keys.FILE_TYPE))


def name(file: Header) -> str:
    """What a file calls itself, else its name on disk without the suffix."""
    return file.metadata.text(keys.NAME) or file.path.stem


def licence(file: Header) -> str | None:
    """The licence that a file states, by its short name; None when it states none."""
    return file.metadata.text(keys.LICENSE)


def parameters(file: Header) -> int:
    """Number of weights in a file."""
    return sum(math.prod(tensor.shape) for tensor in file.tensors.values())
