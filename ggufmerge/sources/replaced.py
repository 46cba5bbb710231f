"""Weights that an adapter brings whole, instead of a low-rank change of them: modules, or the rows of some tokens.

A module that was trained in full (`modules_to_save` of PEFT) stands in the place of the model's tensor, so it is
converted like any other; trained rows are put among those of the model as they are read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufmerge.formats.stored import StoredTensor
from ggufmerge.quants import codec
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]


class Blend:
    """A tensor between that of a model and those that adapters bring in its place: base + sum of s * (new - base).

    It has the interface of `files.Tensor` and is made in F32 as it is read; nothing of it is kept.
    """

    type = TensorType.F32

    def __init__(self, base: StoredTensor, parts: Sequence[tuple[StoredTensor, float]]) -> None:
        """parts: the tensors of the adapters, of the same shape, with their strengths s."""
        self.name, self.shape, self.path = base.name, base.shape, parts[0][0].path
        self.rows, self.n = base.rows, base.n
        self._base, self._parts = base, parts

    @property
    def raw(self) -> NDArray[np.uint8]:
        """uint8: all rows."""
        return self.raw_rows(0, self.rows).reshape(-1)

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 [stop - start, 4 n]."""
        base = values(self._base, start, stop)
        out = base.copy()
        for new, strength in self._parts:
            out += np.float32(strength) * (values(new, start, stop) - base)
        return out.view(np.uint8)


def replacement(base: StoredTensor, parts: Sequence[tuple[StoredTensor, float]]) -> StoredTensor:
    """What a tensor is with these in its place, at these strengths."""
    [(new, strength), *others] = parts
    return new if strength == 1 and not others else Blend(base, parts)


class Rows:
    """Trained rows of a tensor: at strength s, row i becomes (1 - s) * row + s * new; see `lora.Change`."""

    rank = 1  # it costs about what a change of rank 1 does

    def __init__(self, numbers: Sequence[int], rows: StoredTensor, strength: float) -> None:
        """numbers: of the rows of the tensor; rows: the new ones, in that order."""
        self.path: Path = rows.path
        self.parts = (rows,)
        self._numbers, self._rows, self._strength = np.array(numbers, np.int64), rows, np.float32(strength)
        self._held: Floats | None = None
        self._lock = threading.Lock()

    def add_to(self, rows: Floats, start: int) -> None:
        """Put the new rows among `rows`, float32 [k, n], which are rows [start, start + k) of the tensor, in place."""
        here = np.flatnonzero((self._numbers >= start) & (self._numbers < start + len(rows)))
        if not here.size:
            return
        with self._lock:
            if self._held is None:
                self._held = values(self._rows, 0, self._rows.rows)
        for i in here.tolist():
            row = rows[self._numbers[i] - start]
            row[...] = self._held[i] if self._strength == 1 else row + self._strength * (self._held[i] - row)


def values(tensor: StoredTensor, start: int, stop: int) -> Floats:
    """float32 [stop - start, n]: rows of a stored tensor."""
    out = np.empty((stop - start, tensor.n), np.float32)
    codec(tensor.type).dequantize(tensor.raw_rows(start, stop), out)
    return out
