"""Rows of a tensor of the result, float32, to the bytes of its type, with figures of what that cost.

The encoder (`quants.encoders`) is the one that the tensor's rounding names. Values that are not finite are refused, and
so are values that the type cannot hold, as llama-quantize refuses them: what was written is looked at, not what one
hopes of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError
from ggufmerge.methods.random import fill_words, stream_key
from ggufmerge.planning.plan import PlannedTensor, Rounding
from ggufmerge.quants import codec
from ggufmerge.quants.calibrated.moments import Moments
from ggufmerge.quants.encoders import Piece, encoder
from ggufmerge.quants.figures import kept_change, squares
from ggufmerge.quants.magnitude import first_bad, magnitude
from ggufmerge.sources.damage import place
from ggufmerge.text import series
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]
Raw = NDArray[np.uint8]

# What was quantized over the type's limit: up to here it rounds to the limit as to its nearest neighbour, and up to
# here it was clipped, which is worth a note. Beyond, ggml's searches overflow and may leave a block of zeros.
_ROUNDED, _CLIPPED = 7 / 6, 2.0
_WIDE = [TensorType[name] for name in ("F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K")]  # to propose


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


class Misfit(NamedTuple):
    """A block that a type cannot hold: its row in the tensor, its first column, and its values, float32."""

    row: int
    column: int
    values: Floats


@dataclass
class Figures:
    """What writing rows cost, as sums over values that can be added up.

    error: of (rows - written)^2.  energy: of rows^2.
    kept, change: the two sums of `run.Survival`.
    largest: the largest absolute value of rows.  excess: that of what was quantized, relative to the type's limit.
    misfit: the first block that the type cannot hold, None when it holds all.
    """

    error: float = 0.0
    energy: float = 0.0
    kept: float = 0.0
    change: float = 0.0
    largest: float = 0.0
    excess: float = 0.0
    misfit: Misfit | None = None

    def add(self, other: Figures) -> None:
        """Those of the next rows in order."""
        self.error += other.error
        self.energy += other.energy
        self.kept += other.kept
        self.change += other.change
        self.largest = max(self.largest, other.largest)
        self.excess = max(self.excess, other.excess)
        self.misfit = self.misfit or other.misfit

    @property
    def relative_error(self) -> float:
        """Relative RMS error; 0 for a tensor of zeros."""
        return math.sqrt(self.error / self.energy) if self.energy else 0.0


class TensorEncoder:
    """Encodes one tensor of the result, a few rows at a time. Several threads may encode at once.

    seed: of the plan.  measure: whether to find out what the encoding costs.
    weights: the importance of each column, float32 [matrices, n]; None without.
    moments: gives those of the inputs of a matrix, by its number; None for tensors that are not calibrated.
    scales: what the values are divided by before they are quantized, float32 [matrices]; None for 1.
    """

    def __init__(
        self,
        tensor: PlannedTensor,
        seed: int,
        scratch: Scratch,
        *,
        weights: Floats | None = None,
        moments: Callable[[int], Moments] | None = None,
        scales: Floats | None = None,
        measure: bool = False,
    ) -> None:
        self._moments = moments
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
        blocks: Raw | None = None,
        rounding: Rounding = "nearest",
    ) -> tuple[Raw, Figures]:
        """The bytes of rows [start, ...), all of one matrix, uint8 [rows, row bytes] in the thread's scratch.

        stored, base, blocks: as in `quants.encoders.Piece`.  rounding: the name of the encoder.
        """
        tensor = self.tensor
        figures = Figures(largest=magnitude(rows))
        if not figures.largest < math.inf:
            row, column = divmod(first_bad(rows), tensor.n)
            raise GgufmergeError(
                f"{tensor.name}: the merged weights are not all finite numbers, first the one at "
                f"{place(tensor.shape, start + row, column)}; the weights or parameters of the recipe are far too large"
            )
        raw = self._scratch.array("raw", (len(rows), tensor.type.row_bytes(tensor.n)), np.uint8)
        matrix = start * tensor.matrices // tensor.rows
        piece = Piece(
            rows,
            base,
            blocks,
            stored,
            weights=None if self.weights is None else self.weights[matrix],
            moments=None if self._moments is None else self._moments(matrix),
            offset=tensor.offset,
            scale=None if self.scales is None else self.scales[matrix],
            chance=partial(self._fill_with_chance, start * tensor.n),
            array=self._scratch.array,
        )
        scaled = encoder(rounding).encode(self._codec, piece, raw)
        largest = figures.largest if scaled is rows else magnitude(scaled)
        figures.excess = largest / self._codec.limit
        if not figures.excess <= _CLIPPED:
            figures.misfit = self._misfit(start, rows, int(np.abs(scaled).argmax()) // tensor.type.block_size)
        elif figures.excess <= 1 and tensor.type.is_float:
            pass  # the values are what is written
        elif (block := self._codec.damaged(raw)) >= 0:
            figures.misfit = self._misfit(start, rows, block)
        if self._measure:
            self._compare(figures, start, rows, base, raw)
        return raw, figures

    def check(self, figures: Figures) -> list[str]:
        """Refuse a tensor of which `figures` tell that its type cannot hold it; else what the user should know of it.

        GgufmergeError names the largest value and types that hold it.
        """
        tensor, misfit = self.tensor, figures.misfit
        if misfit is None:
            if figures.excess <= _ROUNDED:
                return []
            return [f"{tensor.type} holds values up to 1/{figures.excess:.3g} of the largest, so some were clipped"]
        last = misfit.column + len(misfit.values) - 1
        where = place(tensor.shape, misfit.row, misfit.column)
        if last > misfit.column:
            where = f"{where} to {last}".replace("column", "columns").replace("place", "places")
        holding = [str(t) for t in _WIDE if _holds(t, misfit.values, figures.largest)]
        raise GgufmergeError(
            f"{tensor.name}: {tensor.type} cannot hold the weights at {where}, up to {magnitude(misfit.values):.4g}; "
            f"the largest of the tensor is {figures.largest:.4g}, which {series(holding)} can hold: give the tensor "
            "another type, or look for what made its weights so large"
        )

    def _misfit(self, start: int, rows: Floats, block: int) -> Misfit:
        size = self.tensor.type.block_size
        row, place_in_row = divmod(block, self.tensor.n // size)
        column = place_in_row * size
        return Misfit(start + row, column, rows[row, column : column + size].copy())

    def values(self, start: int, raw: Raw, out: Floats) -> Floats:
        """What a reader will find in the bytes of rows [start, ...): fills `out`, float32 [rows, n], and gives it."""
        self._codec.dequantize(raw, out)
        if self.scales is not None:
            out *= self.scales[start * self.tensor.matrices // self.tensor.rows]
        if self.tensor.offset:
            out -= np.float32(self.tensor.offset)
        return out

    def _fill_with_chance(self, first: int, out: NDArray[np.uint32]) -> None:
        """The random words of the values from this number on; a value's luck depends on nothing else."""
        fill_words(stream_key(self._seed, self.tensor.name, "rounding"), first, out)

    def _compare(self, figures: Figures, start: int, rows: Floats, base: Floats | None, raw: Raw) -> None:
        """Find out what the encoding cost."""
        back = self._scratch.array("back", rows.shape, np.float32)
        self.values(start, raw, back)
        figures.error, figures.energy = squares(rows, back)
        if base is not None:
            figures.kept, figures.change = kept_change(base, rows, back)


def _holds(kind: TensorType, values: Floats, largest: float) -> bool:
    """Whether a type can hold these values, at most 256, and in another block the largest of their tensor."""
    trial = np.zeros((2, 256), np.float32)
    trial[0, : values.size] = values
    trial[1, ::16] = largest
    raw = np.empty((2, kind.row_bytes(256)), np.uint8)
    codec(kind).encode(trial, raw)
    return largest <= codec(kind).limit and codec(kind).damaged(raw) < 0
