"""What a model or an adapter is read from, in any format: the interface of `files.GGUFFile` and `files.Tensor`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufmerge.files.metadata import KeyValues
from ggufmerge.files.tensor import MappedFile
from ggufmerge.types import TensorType


class DescribedTensor(Protocol):
    """What is known of a tensor without its bytes: GGUF's name for it, its shape and its type."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> TensorType: ...
    @property
    def rows(self) -> int: ...
    @property
    def n(self) -> int: ...


class StoredTensor(DescribedTensor, Protocol):
    """A tensor of an open file, with the bytes that a GGUF file would hold."""

    @property
    def path(self) -> Path: ...
    @property
    def raw(self) -> NDArray[np.uint8]: ...
    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]: ...


class StoredFile(Protocol):
    """One or several open files with the tensors of a model or an adapter."""

    path: Path
    paths: list[Path]

    @property
    def metadata(self) -> KeyValues: ...
    @property
    def architecture(self) -> str: ...
    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...
    @property
    def mapped(self) -> Sequence[MappedFile]: ...
    def close(self) -> None: ...


File = TypeVar("File")


def with_tensors(file: File, tensors: Mapping[str, StoredTensor]) -> File:
    """The same open file, with these tensors in the place of its own or behind them; either is closed with the other.

    file: a model, of any of the kinds that have `tensors` by name.
    """
    other: Any = copy.copy(file)
    other.tensors = type(other.tensors)({**other.tensors, **tensors})
    return other


def with_only(file: File, tensors: Mapping[str, DescribedTensor], metadata: KeyValues | None = None) -> File:
    """The same open file, with these tensors, and metadata if given, instead of its own; either is closed with the
    other.
    """
    other: Any = copy.copy(file)
    other.metadata = metadata or other.metadata
    other.tensors = type(other.tensors)(tensors)
    return other
