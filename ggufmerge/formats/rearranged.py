"""Tensors that no file holds as such: their rows are ranges of the rows of stored ones, made as they are read.

One model may be stored in several layouts: an expert a tensor or all experts of a layer in one, Q, K and V apart or on
top of each other. A row has the same length and the same bytes in each of them, so to go from one to the other is only
a matter of which rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufmerge.files.tensor import TensorInfo
from ggufmerge.formats.stored import DescribedTensor, StoredTensor
from ggufmerge.quants import codec
from ggufmerge.types import TensorType


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of a stored tensor."""

    tensor: StoredTensor
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rearranged(TensorInfo):
    """A tensor made of spans of rows, one after the other; all are of its type, and their bytes stay what they are.

    It has the interface of `files.Tensor`. Rows out of one span are a view of the file, others a copy.
    """

    spans: tuple[Span, ...]
    path: Path = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.spans[0].tensor.path)

    @property
    def whole(self) -> str:
        """The only stored tensor that the rows are of, by its name; empty when they are of several."""
        names = {span.tensor.name for span in self.spans}
        return names.pop() if len(names) == 1 else ""

    @property
    def is_whole(self) -> bool:
        """Whether the rows are all of one stored tensor, which then has another name only."""
        return len(self.spans) == 1 and self.spans[0].stop - self.spans[0].start == self.spans[0].tensor.rows

    @property
    def moves(self) -> list[tuple[int, int, int]]:
        """Rows [start, stop) of each span, and which row of the stored tensor the first of them is."""
        found, at = list[tuple[int, int, int]](), 0
        for span in self.spans:
            found.append((at, at + span.stop - span.start, span.start))
            at = found[-1][1]
        return found

    @property
    def raw(self) -> NDArray[np.uint8]:
        """uint8 [nbytes]: a copy of all rows."""
        return self.raw_rows(0, self.rows).reshape(-1)

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, row_bytes]: rows [start, stop) as they are stored."""
        return _joined([tensor.raw_rows(a, b) for tensor, a, b in _parts(self.spans, start, stop)], self.row_bytes)


@dataclass(frozen=True, slots=True)
class Mixed(TensorInfo):
    """The same of spans whose types differ, so that no bytes of one type are those of all: it is made in F32.

    widest: the type among them that has the most bits. A result has the tensor in it unless another one is asked
        for.
    """

    spans: tuple[Span, ...]
    widest: TensorType
    path: Path = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.spans[0].tensor.path)

    @property
    def raw(self) -> NDArray[np.uint8]:
        """uint8 [nbytes]: all rows."""
        return self.raw_rows(0, self.rows).reshape(-1)

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, 4 n]."""
        out = np.empty((stop - start, self.n), np.float32)
        at = 0
        for tensor, a, b in _parts(self.spans, start, stop):
            codec(tensor.type).dequantize(tensor.raw_rows(a, b), out[at : at + b - a])
            at += b - a
        return out.view(np.uint8)


@dataclass(frozen=True, slots=True)
class Computed(TensorInfo):
    """A tensor that is made in F32, some rows together, of values that are stored in another order than rows have.

    parts: the stored tensors that it is made of.  widest: the type that a result has it in unless another one is asked
    for.  together: how many rows are made at a time.  make: makes them, float32 [together, n], by their number.
    """

    parts: tuple[StoredTensor, ...]
    widest: TensorType
    together: int
    make: Callable[[int], NDArray[np.float32]] = field(compare=False, repr=False)
    path: Path = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.parts[0].path)

    @property
    def raw(self) -> NDArray[np.uint8]:
        """uint8 [nbytes]: all rows."""
        return self.raw_rows(0, self.rows).reshape(-1)

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, 4 n]."""
        out = np.empty((stop - start, self.n), np.float32)
        row = start
        while row < stop:
            number, inside = divmod(row, self.together)
            some = self.make(number)[inside : inside + stop - row]
            out[row - start : row - start + len(some)] = some
            row += len(some)
        return out.view(np.uint8)


@dataclass(frozen=True, slots=True)
class Stretch(TensorInfo):
    """Values [start, start + n) of each row of a tensor of floats, as a tensor of its own: a part of a bias."""

    stored: StoredTensor
    start: int
    path: Path = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.stored.path)

    @property
    def whole(self) -> str:
        """The name of the stored tensor."""
        return self.stored.name

    @property
    def raw(self) -> NDArray[np.uint8]:
        """uint8 [nbytes]."""
        return self.raw_rows(0, self.rows).reshape(-1)

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, row_bytes]: rows [start, stop) as they are stored."""
        first = self.type.row_bytes(self.start)
        return np.ascontiguousarray(self.stored.raw_rows(start, stop)[:, first : first + self.row_bytes])


def rearranged(name: str, shape: tuple[int, ...], spans: Sequence[Span]) -> Rearranged | Mixed:
    """A tensor of these rows, which all have the same length; see `Rearranged` and `Mixed`."""
    kinds = {span.tensor.type for span in spans}
    if len(kinds) == 1:
        return Rearranged(name, shape, spans[0].tensor.type, tuple(spans))
    widest = max(kinds, key=lambda kind: (kind.row_bytes(kind.block_size) / kind.block_size, str(kind)))
    return Mixed(name, shape, TensorType.F32, tuple(spans), widest)


def described(tensor: StoredTensor) -> DescribedTensor:
    """A tensor with the type that a result has it in unless another one is asked for."""
    return TensorInfo(tensor.name, tensor.shape, tensor.widest) if isinstance(tensor, (Mixed, Computed)) else tensor


def taken_apart(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """The names of the stored tensors of which these are parts, in order."""
    made = {part.name for t in tensors.values() if isinstance(t, Computed) for part in t.parts}
    parts = (t for t in tensors.values() if isinstance(t, Stretch) or (isinstance(t, Rearranged) and not t.is_whole))
    return [whole for whole in dict.fromkeys(part.whole for part in parts) if whole and whole not in made]


def under_other_names(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """The names of the stored tensors that are shown under another name, in order."""
    return [t.whole for t in tensors.values() if isinstance(t, Rearranged) and t.is_whole]


def _parts(spans: Sequence[Span], start: int, stop: int) -> Iterator[tuple[StoredTensor, int, int]]:
    """The rows of stored tensors that rows [start, stop) are made of."""
    at = 0
    for span in spans:
        rows = span.stop - span.start
        a, b = max(start - at, 0), min(stop - at, rows)
        if a < b:
            yield span.tensor, span.start + a, span.start + b
        at += rows


def _joined(parts: Sequence[NDArray[np.uint8]], row_bytes: int) -> NDArray[np.uint8]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, row_bytes), np.uint8)
