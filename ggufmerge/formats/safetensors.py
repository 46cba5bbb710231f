"""The safetensors container: tensors in a mapped file, by name; only vectors and matrices of floats.

Format: eight bytes with the length of the header, the header in JSON ({name: {dtype, shape, data_offsets}}), the data.
https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import FormatError
from ggufmerge.files.small import open_regular, parse_mapping
from ggufmerge.files.tensor import MappedFile
from ggufmerge.types import TensorType

_TYPES = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}
_MAX_HEADER = 100_000_000  # bytes; the reference implementation's limit
_MAX_NAME = 500  # letters of a tensor's name; published ones have less than a hundred
_MAX_EMPTY = 1 << 24  # of an empty tensor no file says how large its other dimensions can be


class FloatArray:
    """A float tensor of a safetensors file, perhaps rearranged, with the interface of `files.Tensor`.

    items: uint8 [rows, n, bytes of a value], a view of the mapped file; a vector is one row.  order: which of them each
    row is.
    """

    def __init__(
        self,
        name: str,
        type: TensorType,  # noqa: A002
        path: Path,
        items: NDArray[np.uint8],
        order: NDArray[np.intp] | None = None,
        *,
        vector: bool = False,
    ) -> None:
        self.name, self.type, self.path = name, type, path
        self.rows, self.n = items.shape[:2]
        self.shape = (self.n,) if vector else (self.rows, self.n)
        self._items, self._order = items, order

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, row bytes]: a copy of these rows, with the bytes that a GGUF file would hold."""
        chosen = self._items[start:stop] if self._order is None else self._items[self._order[start:stop]]
        return np.ascontiguousarray(chosen).reshape(stop - start, -1)

    @property
    def raw(self) -> NDArray[np.uint8]:
        """uint8: all rows."""
        return self.raw_rows(0, self.rows).reshape(-1)

    def transposed(self) -> FloatArray:
        return FloatArray(self.name, self.type, self.path, self._items.transpose(1, 0, 2))

    def renamed(self, name: str, order: NDArray[np.intp] | None = None) -> FloatArray:
        """The same tensor under another name, its rows taken in this order."""
        return FloatArray(name, self.type, self.path, self._items, order)


class SafetensorsFile:
    """An open file. `tensors`: those of floats with so many `dimensions` by name.  `others`: names of what is left."""

    def __init__(self, path: str | os.PathLike[str], dimensions: Sequence[int] = (2,)) -> None:
        """dimensions: 1 for vectors, 2 for matrices."""
        self.path, self._dimensions = Path(path), dimensions
        try:
            with open_regular(self.path) as file:
                self._file = MappedFile(self.path, file.fileno())
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read ({error.strerror}); check the file") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    @property
    def mapped(self) -> list[MappedFile]:
        return [self._file]

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        data = self._file.bytes
        length = int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or not 2 <= length <= min(_MAX_HEADER, len(data) - 8):
            self._refuse("is not a safetensors file, or was cut off")
        try:
            header = parse_mapping(data[8 : 8 + length].tobytes())
        except ValueError as error:
            self._refuse(f"has a header that cannot be read: {error}")
        self.tensors: dict[str, FloatArray] = {}
        self.others: list[str] = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if len(name) > _MAX_NAME:
                self._refuse(f"has a tensor with a name of {len(name)} letters")
            found = self._tensor(name, entry, data[8 + length :])
            if found is None:
                self.others.append(name)
            else:
                self.tensors[name] = found

    def _tensor(self, name: str, entry: Any, data: NDArray[np.uint8]) -> FloatArray | None:
        if not isinstance(entry, Mapping):
            self._refuse(f'describes "{name}" in a way that is not known')
        shape, span, dtype = (entry.get(key) for key in ("shape", "data_offsets", "dtype"))
        if not _counts(shape) or not _counts(span) or len(span) != 2 or not isinstance(dtype, str):
            self._refuse(f'describes "{name}" in a way that is not known')
        if not span[0] <= span[1] <= len(data):
            self._refuse(f'ends before the data of "{name}"')
        if dtype not in _TYPES or len(shape) not in self._dimensions:
            return None
        width = _TYPES[dtype].block_bytes
        if math.prod(shape) * width != span[1] - span[0]:
            self._refuse(f'gives "{name}" {span[1] - span[0]} bytes, which its shape {shape} does not need')
        if not math.prod(shape) and max(shape) > _MAX_EMPTY:
            self._refuse(f'gives "{name}" the shape {shape}, which holds nothing')
        rows, n = shape if len(shape) == 2 else (1, *shape)
        items = data[span[0] : span[1]].reshape(rows, n, width)
        return FloatArray(name, _TYPES[dtype], self.path, items, vector=len(shape) == 1)

    def _refuse(self, what: str) -> Any:
        raise FormatError(f"{self.path}: {what}; download it again")


def _counts(value: Any) -> bool:
    """Whether a value is a list of whole numbers that are not negative."""
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)
