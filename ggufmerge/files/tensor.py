"""What a tensor of a GGUF file is: its description, and where its bytes lie in a file that is open.

Shapes are in numpy's order, outermost first; the file stores them the other way round (`ne0`, the row length, first).
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import UnknownTensorError, close_to
from ggufmerge.types import TensorType


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape (numpy order; `()` for a single value without dimensions) and storage type of a tensor."""

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def n(self) -> int:
        """Row length `ne0`, in values; 1 without dimensions."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Number of rows: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.type.row_bytes(self.n)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without the padding behind it."""
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells the state of a file from an earlier or later one without reading it: which file it is, its size in
    bytes, and when it was written last, in nanoseconds.
    """

    device: int
    inode: int
    size: int
    written: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def same_file(self, other: Stamp) -> bool:
        return (self.device, self.inode) == (other.device, other.inode)


class MappedFile:
    """A file mapped into memory, read-only. Views taken from it stay valid after `close`, which only lets go of it.

    stamp: of the file when it was mapped; another one later means that it was changed or replaced.
    """

    __slots__ = ("_bytes", "path", "stamp")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        found = os.fstat(descriptor)
        self.stamp = Stamp.of(found)
        self._bytes: NDArray[np.uint8] | None = map_readonly(descriptor, 0, found.st_size)

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """uint8 [file size]; ValueError once closed."""
        if self._bytes is None:
            raise ValueError(f"{self.path}: the file is closed")
        return self._bytes

    def close(self) -> None:
        self._bytes = None


def map_readonly(descriptor: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Bytes [start, stop) of an open file as a read-only view of the page cache, without reading them yet."""
    if stop <= start:
        return np.zeros(0, np.uint8)
    skipped = start % mmap.ALLOCATIONGRANULARITY  # a map may only start at a page
    mapped = mmap.mmap(descriptor, stop - start + skipped, access=mmap.ACCESS_READ, offset=start - skipped)
    return np.frombuffer(mapped, np.uint8)[skipped:]


@dataclass(frozen=True, slots=True)
class Tensor(TensorInfo):
    """A tensor of an open file. `path` is the file (the shard) it lies in, `offset` its first byte in that file."""

    path: Path
    offset: int
    _file: MappedFile = field(repr=False, compare=False)

    @property
    def raw(self) -> NDArray[np.uint8]:
        """uint8 [nbytes]: the tensor as stored, a read-only view of the mapped file."""
        return self._file.bytes[self.offset : self.offset + self.nbytes]

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, row_bytes]: rows [start, stop) as stored, a read-only view of the mapped file."""
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"{self.name}: rows [{start}, {stop}) of a tensor of {self.rows} rows")
        row_bytes = self.row_bytes
        first = self.offset + start * row_bytes
        return self._file.bytes[first : first + (stop - start) * row_bytes].reshape(stop - start, row_bytes)

    def dequantize(self) -> NDArray[np.float32]:
        """float32 array of `shape`: all values, bit-equal to ggml's. GgufmergeError for types files never hold."""
        from ggufmerge.quants import dequantize  # numba is not needed to look at headers

        if not self.size:
            return np.zeros(self.shape, np.float32)
        return dequantize(self.raw_rows(0, self.rows), self.type, self.n).reshape(self.shape)


class Tensors(dict[str, Tensor]):
    """The tensors of a file by name, in file order. A name that is none gives an UnknownTensorError (a KeyError) that
    says which one is close to it; shown, it is one line however many there are.
    """

    def __missing__(self, name: str) -> Tensor:
        close = close_to(name, self)
        hint = f'did you mean "{close}"?' if close else f"there are {len(self)}; list(tensors) has their names"
        raise UnknownTensorError(f'there is no tensor "{name}": {hint}')

    def __repr__(self) -> str:
        some = list(self)[:2]
        names = ", ".join(some) + (", ..." if len(self) > len(some) else "")
        return f"<{len(self)} tensor{'' if len(self) == 1 else 's'}{': ' if some else ''}{names}>"
