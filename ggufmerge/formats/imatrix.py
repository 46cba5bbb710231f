"""Reads importance matrices: GGUF files of llama-imatrix, and the .dat files it wrote before.

Facts from llama.cpp v0.5.0 (`common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp`).

GGUF: for every weight two F32 tensors, `NAME.in_sum2` [matrices, n] and `NAME.counts` [matrices, 1], and the keys
`imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`.
Legacy, little-endian: i32 number of entries; per entry i32 length of name, name, i32 calls, i32 number of values,
float32 values, which are means times calls; then, not always, i32 chunks, i32 length of name, name of the data set.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import FormatError
from ggufmerge.files import GGUFFile, Tensor, open_gguf
from ggufmerge.files.absent import absent
from ggufmerge.files.small import open_regular
from ggufmerge.files.tensor import MappedFile
from ggufmerge.quants.importance import Imatrix, ImatrixEntry
from ggufmerge.types import TensorType

_MAGIC = b"GGUF"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_COUNT = 2.0**53
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")


def load_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """The importance matrices in a file of either format.

    FormatError when it cannot be read, is none, is damaged or holds values that are not finite.
    """
    file = Path(path)
    try:
        with open_regular(file) as f:
            if f.read(4) != _MAGIC:
                return _Legacy(file, MappedFile(file, f.fileno())).read()
    except FileNotFoundError:
        raise FormatError(f"{file}: {absent(file)}") from None
    except OSError as e:
        raise FormatError(
            f"{file}: the file cannot be read ({e.strerror or e}); give one that llama-imatrix wrote"
        ) from None
    with open_gguf(file) as gguf:
        return _from_gguf(gguf)


def _from_gguf(file: GGUFFile) -> Imatrix:
    missing = [key for key in _KEYS if key not in file.metadata]
    if missing and file.architecture:
        _refuse(file.path, "a model or adapter, not an importance matrix", "give a file that llama-imatrix wrote")
    if missing:
        _refuse(file.path, f"it lacks {', '.join(missing)}", "give a file that llama-imatrix wrote")
    datasets, *numbers = file.metadata.texts(_KEYS[0]), *map(file.metadata.integer, _KEYS[1:])
    if datasets is None:
        _refuse(file.path, "imatrix.datasets is not a list of texts", "give a file that llama-imatrix wrote")
    chunks, chunk_size = numbers
    if chunks is None or chunk_size is None:
        key = _KEYS[1] if chunks is None else _KEYS[2]
        what = f"{key} is {file.metadata.found(key)}, no whole number"
        _refuse(file.path, what, "give a file that llama-imatrix wrote")
    names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
    alone = [n for n in file.tensors if n.endswith(_COUNTS) and n.removesuffix(_COUNTS) + _SUMS not in file.tensors]
    alone += [name + _SUMS for name in names if name + _COUNTS not in file.tensors]
    if alone:
        _refuse(file.path, f"{alone[0]} is there without its other half", "make the file again with llama-imatrix")
    if not names:
        _refuse(file.path, "it holds no importance values", "give a file that llama-imatrix wrote")
    entries = {}
    for name in names:
        sums, counts = (_float32(file, file.tensors[name + suffix]) for suffix in (_SUMS, _COUNTS))
        if not (np.abs(counts) < _MAX_COUNT).all():
            _refuse(file.path, f"{name}{_COUNTS} holds no counts", "make the file again with llama-imatrix")
        entries[name] = ImatrixEntry(sums, np.floor(counts.astype(np.float64) + 0.5).astype(np.int64))
    return Imatrix(entries, datasets=datasets, chunks=chunks, chunk_size=chunk_size, file=file.path.name)


def _float32(file: GGUFFile, tensor: Tensor) -> NDArray[np.float32]:
    if tensor.type is not TensorType.F32:
        _refuse(file.path, f"{tensor.name} is {tensor.type} instead of F32", "make the file again with llama-imatrix")
    return np.asarray(tensor.raw).reshape(-1).view("<f4")


class _Legacy:
    """A reader of the old format that asks for no more bytes than are left."""

    def __init__(self, path: Path, file: MappedFile) -> None:
        self.path, self.data, self.position = path, file.bytes, 0

    def read(self) -> Imatrix:
        count = self._number("the number of entries")
        if not 0 < count <= len(self.data) // 16:  # an entry has 16 bytes at least
            _refuse(
                self.path,
                f"neither GGUF nor a legacy importance matrix, which would begin with {count} entries",
                "give a file that llama-imatrix wrote",
            )
        entries: dict[str, ImatrixEntry] = {}
        for i in range(count):
            name, entry = self._entry(f"entry {i + 1} of {count}")
            if name in entries:
                self._damaged(f"{name} appears twice")
            entries[name] = entry
        chunks, datasets = 0, []
        if self.position < len(self.data):
            chunks = self._number("the number of chunks")
            if self.position < len(self.data):
                datasets = [self._text(self._number("the data set"), "the data set")]
        return Imatrix(entries, datasets=[d for d in datasets if d], chunks=chunks, file=self.path.name)

    def _entry(self, what: str) -> tuple[str, ImatrixEntry]:
        name = self._text(self._number(what), what)
        if not name:
            self._damaged(f"{what} has no name")
        calls, size = self._number(what), self._number(what)
        if size < 1:
            self._damaged(f"{what}, {name}, has {size} values")
        sums = np.frombuffer(self._take(4 * size, f"{what}, {name},"), "<f4")
        # without calls the values are taken as they are
        return name, ImatrixEntry(sums, np.array([max(calls, 1)], np.int64))

    def _number(self, what: str) -> int:
        return int(struct.unpack("<i", self._take(4, what))[0])

    def _text(self, size: int, what: str) -> str:
        try:
            return self._take(size, what).decode("utf-8")
        except UnicodeDecodeError:
            self._damaged(f"the name in {what} is not UTF-8")

    def _take(self, size: int, what: str) -> bytes:
        left = len(self.data) - self.position
        if not 0 <= size <= left:
            self._damaged(f"{what} should have {size} bytes, but {left} are left")
        self.position += size
        return self.data[self.position - size : self.position].tobytes()

    def _damaged(self, what: str) -> NoReturn:
        _refuse(self.path, f"damaged importance matrix: {what}", "make the file again with llama-imatrix")


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise FormatError(f"{path}: {what}; {remedy}")
