"""How the weights of models' files were rounded, and what of their differences is more than that (`ggufmerge.noise`):
the steps of rows that are read, and the importance matrix that the metadata name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from ggufmerge.files.metadata import KeyValues
from ggufmerge.formats.stored import StoredTensor
from ggufmerge.keys import IMATRIX_CHUNKS, IMATRIX_DATASET, IMATRIX_FILE
from ggufmerge.noise.change import BINS, CLASSES, Estimate, Rounding, Stored, add_pairs, estimate, exact
from ggufmerge.noise.steps import GROUP, groups_of, squared_steps
from ggufmerge.sources.model import SourceTensor
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What pairs of models differ by in some weights, to be added up.

    estimates: of each pair.  blocks: float64 [pairs, 2], identical ones and all.  energies: float64 [models], sums of
    the squares of the weights.
    """

    estimates: tuple[Estimate, ...]
    blocks: Sums
    energies: Sums

    def __add__(self, other: Found) -> Found:
        both = zip(self.estimates, other.estimates, strict=True)
        return Found(tuple(a + b for a, b in both), self.blocks + other.blocks, self.energies + other.energies)

    @classmethod
    def nothing(cls, pairs: int, models: int) -> Found:
        return cls((Estimate(),) * pairs, np.zeros((pairs, 2)), np.zeros(models))


class Gathering:
    """Sums over one tensor while its rows stream by.

    inputs: by the numbers of `pairs`; None for a row of zeros that stands for no model.
    matrices: what tells the importance matrix of each from others (`matrix_of`).
    """

    def __init__(
        self,
        inputs: Sequence[SourceTensor | None],
        matrices: Sequence[str | None],
        pairs: Sequence[tuple[int, int]],
    ) -> None:
        self._inputs, self._pairs = inputs, pairs
        self._index = np.array(self._pairs, np.int64)
        self._roundings = [
            Rounding(reader.type, matrix, reader.rank > 0) if reader else Rounding(TensorType.F32)
            for reader, matrix in zip(inputs, matrices, strict=True)
        ]
        self._blocks = np.array([self._block(a, b) for a, b in self._pairs], np.int64)
        self._sums = np.zeros((len(self._pairs), CLASSES, BINS, 4))
        self._same = np.zeros((len(self._pairs), 2))
        self._squares = np.zeros((2, len(inputs)))  # of the values, and of their steps

    def _block(self, a: int, b: int) -> int:
        """How many groups a block of both has."""
        first, second = (self._roundings[i].kind for i in (a, b))
        reader = self._inputs[a]
        fits = reader is not None and groups_of(reader.n) * GROUP == reader.n
        return max(first.block_size // GROUP, 1) if first == second and fits else 1

    def partial(self, start: int, x: Floats) -> tuple[Sums, Sums, Sums]:
        """Of rows [start, start + k) of all models, float32 [models, k, n]; a thread's part of the work."""
        models, rows, n = x.shape
        steps = np.zeros((models, rows, groups_of(n)), np.float32)
        for i, reader in enumerate(self._inputs):
            if reader is not None:
                _fill_steps(reader, start, x[i], steps[i])
        sums, same = np.zeros_like(self._sums), np.zeros_like(self._same)
        add_pairs(x, steps, self._index, self._blocks, sums, same)
        size = n // max(steps.shape[2], 1)
        squares = [[float(np.vdot(x[i], x[i])), size * float(steps[i].sum(dtype=np.float64))] for i in range(models)]
        return sums, same, np.array(squares).T

    def fold(self, part: tuple[Sums, Sums, Sums]) -> None:
        """Add a part."""
        self._sums += part[0]
        self._same += part[1]
        self._squares += part[2]

    def found(self) -> Found:
        """Of the whole tensor."""
        stored = [Stored(r, *self._squares[:, i].tolist()) for i, r in enumerate(self._roundings)]
        estimates = []
        for (a, b), sums in zip(self._pairs, self._sums, strict=True):
            first, second = self._inputs[a], self._inputs[b]
            shared = first is not None and second is not None and first.same_data(second)
            estimates.append(exact(sums) if shared else estimate(sums, stored[a], stored[b]))
        return Found(tuple(estimates), self._same, self._squares[0])


def _fill_steps(reader: SourceTensor, start: int, x: Floats, out: Floats) -> None:
    """Fill `out`, float32 [k, groups], with the squares of the steps of rows from `start` on, whose values are `x`."""
    rows = np.arange(start, start + len(x))
    raw = reader.raw_rows(start, start + len(x)) if reader.type.is_quantized else np.empty((len(x), 0), np.uint8)
    if reader.scales is None:
        squared_steps(raw, x, reader.type, out)
        return
    scales = reader.scales[rows * len(reader.scales) // reader.rows, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        squared_steps(raw, np.where(scales == 0, 0, x / scales), reader.type, out)
    out *= scales * scales


def is_exact(base: StoredTensor, model: StoredTensor) -> bool:
    """Whether a difference has no rounding errors in it: of floats, and of adapters on one file."""
    return base == model or not (base.type.is_quantized or model.type.is_quantized)


def matrix_of(metadata: KeyValues) -> str | None:
    """What tells the importance matrix that a file was quantized with from others, by its metadata; None without."""
    named = metadata.text(IMATRIX_DATASET) or metadata.text(IMATRIX_FILE)
    if not named:
        return None
    return f"{PurePath(named.replace(chr(92), '/')).name} {metadata.integer(IMATRIX_CHUNKS)}"
