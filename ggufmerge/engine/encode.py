"""Rows of a tensor of the result, float32, to the bytes of its type, with figures of what that cost.

Between the two stand: a check that all values are finite, stochastic rounding, the offset and the scale that the stored
values have, the codec, and the blocks of the inputs that the merge left as they are.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.engine.plan import PlannedTensor, Rounding
from ggufmerge.engine.rounding import UNIFORM, round_on_grid
from ggufmerge.errors import GgufmergeError
from ggufmerge.kernels import kernel
from ggufmerge.methods.random import stream_key
from ggufmerge.quants import codec
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]
Raw = NDArray[np.uint8]


class Scratch(threading.local):
    """Arrays by name, each thread's own, that are reused from chunk to chunk."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """An array of this shape, of anything; what this name was given before in this thread is overwritten."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, dtype)
        return self._arrays[name][:size].reshape(shape)


@dataclass
class Figures:
    """What writing rows cost, as sums over values that can be added up.

    error: of (rows - written)^2.  energy: of rows^2.
    kept, change: the two sums of `run.Survival`.
    """

    error: float = 0.0
    energy: float = 0.0
    kept: float = 0.0
    change: float = 0.0

    def add(self, other: Figures) -> None:
        """Those of the next rows in order."""
        self.error += other.error
        self.energy += other.energy
        self.kept += other.kept
        self.change += other.change

    @property
    def relative_error(self) -> float:
        """Relative RMS error; 0 for a tensor of zeros."""
        return math.sqrt(self.error / self.energy) if self.energy else 0.0


class TensorEncoder:
    """Encodes one tensor of the result, a few rows at a time. Several threads may encode at once.

    seed: of the plan.  measure: whether to find out what the encoding costs.
    weights: the importance of each column, float32 [matrices, n]; None without.
    scales: what the values are divided by before they are quantized, float32 [matrices]; None for 1.
    """

    def __init__(
        self,
        tensor: PlannedTensor,
        seed: int,
        scratch: Scratch,
        *,
        weights: Floats | None = None,
        scales: Floats | None = None,
        measure: bool = False,
    ) -> None:
        self.tensor, self.weights, self.scales = tensor, weights, scales
        self._seed, self._scratch, self._measure = seed, scratch, measure
        self._codec = codec(tensor.type)

    def encode(
        self,
        start: int,
        rows: Floats,
        *,
        stored: Sequence[tuple[Floats, Raw]] = (),
        base: Floats | None = None,
        rounding: Rounding = "nearest",
    ) -> tuple[Raw, Figures]:
        """The bytes of rows [start, ...), all of one matrix, uint8 [rows, row bytes] in the thread's scratch.

        stored: values and bytes of these rows in inputs that have the type already. Blocks that the merge, or chance,
        left as they are in one of them keep their bytes: quantizing them anew would move them a little.
        base: the rows without their change, to round and to measure it.
        rounding: "stochastic" needs a `base` on the type's grid.
        """
        tensor = self.tensor
        if not all_finite(rows):
            raise GgufmergeError(
                f"{tensor.name}: the merged weights are not all finite numbers; "
                "a source is damaged, or the weights of the recipe are far too large"
            )
        raw = self._scratch.array("raw", (len(rows), tensor.type.row_bytes(tensor.n)), np.uint8)
        matrix = start * tensor.matrices // tensor.rows
        target = rows if rounding == "nearest" or base is None else self._on_grid(start, base, rows)
        scaled = target + np.float32(tensor.offset) if tensor.offset else target
        if self.scales is not None:
            scaled = np.divide(scaled, self.scales[matrix], out=self._scratch.array("scaled", rows.shape, np.float32))
        self._codec.encode(scaled, raw, None if self.weights is None else self.weights[matrix])
        for values, data in stored:
            _keep_blocks(target, values, data, raw, tensor.type.block_size)
        return raw, self._figures(start, rows, base, raw) if self._measure else Figures()

    def read_back(
        self,
        start: int,
        rows: Floats,
        *,
        stored: Sequence[tuple[Floats, Raw]] = (),
        base: Floats | None = None,
        rounding: Rounding = "nearest",
    ) -> Floats:
        """What a reader will find where `encode` wrote these rows, float32 [rows, n]."""
        raw, _ = self.encode(start, rows, stored=stored, base=base, rounding=rounding)
        back = np.empty(rows.shape, np.float32)
        self._decode(start, raw, back)
        return back

    def _decode(self, start: int, raw: Raw, out: Floats) -> None:
        """The values of the bytes of rows [start, ...)."""
        self._codec.dequantize(raw, out)
        if self.scales is not None:
            out *= self.scales[start * self.tensor.matrices // self.tensor.rows]
        if self.tensor.offset:
            out -= np.float32(self.tensor.offset)

    def _on_grid(self, start: int, base: Floats, rows: Floats) -> Floats:
        """The rows with their change rounded stochastically onto the grids of `base`."""
        tensor = self.tensor
        key = int(stream_key(self._seed, tensor.name, "rounding"))
        return round_on_grid(base, rows, tensor.type, key, start * tensor.n)

    def _figures(self, start: int, rows: Floats, base: Floats | None, raw: Raw) -> Figures:
        back = self._scratch.array("back", rows.shape, np.float32)
        self._decode(start, raw, back)
        figures = Figures(*squares(rows, back))
        if base is not None:
            figures.kept, figures.change = kept_change(base, rows, back)
        return figures


def warm_up(kind: TensorType, weighted: bool, rows: Floats) -> None:
    """Compile (or load from numba's cache) the kernels that write `rows` in a type, `weighted` by a matrix or not."""
    all_finite(rows)
    weights = np.ones(rows.shape[1], np.float32) if weighted else None
    raw = np.empty((len(rows), kind.row_bytes(rows.shape[1])), np.uint8)
    codec(kind).encode(rows, raw, weights)
    data = raw.copy()
    data.setflags(write=False)  # as in a mapped file
    _keep_blocks(rows, rows, data, raw, kind.block_size)
    squares(rows, rows)
    kept_change(rows, rows, rows)
    if kind in UNIFORM:
        round_on_grid(rows, rows, kind, 0, 0)


@kernel
def all_finite(rows):  # type: ignore[no-untyped-def]
    """Whether no value is NaN or infinite: x - x is zero for finite numbers only."""
    bad = 0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            bad += (rows[i, j] - rows[i, j]) != 0
    return bad == 0


@kernel
def _keep_blocks(rows, values, data, raw, size):  # type: ignore[no-untyped-def]
    """Copy to `raw` those blocks of `data` whose `size` values are the same in `values`, which they stand for, and in
    `rows`; float32 [rows, n], uint8 [rows, row bytes]."""
    blocks = rows.shape[1] // size
    width = raw.shape[1] // blocks
    for r in range(rows.shape[0]):
        for b in range(blocks):
            same = True
            for j in range(b * size, (b + 1) * size):
                if rows[r, j] != values[r, j]:
                    same = False
                    break
            if same:
                raw[r, b * width : (b + 1) * width] = data[r, b * width : (b + 1) * width]


@kernel
def squares(rows, back):  # type: ignore[no-untyped-def]
    """Sums over all values of (rows - back)^2 and of rows^2, in float64."""
    error = energy = 0.0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            x = np.float64(rows[i, j])
            d = x - np.float64(back[i, j])
            error += d * d
            energy += x * x
    return error, energy


@kernel
def kept_change(base, rows, back):  # type: ignore[no-untyped-def]
    """Sums over all values of (back - base) * (rows - base) and of (rows - base)^2, in float64."""
    kept = change = 0.0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            old = np.float64(base[i, j])
            wanted = np.float64(rows[i, j]) - old
            kept += wanted * (np.float64(back[i, j]) - old)
            change += wanted * wanted
    return kept, change
