"""The step of every group of stored weights: what its scale says of the distance between neighbouring values.

For formats with equal distances it is that distance. IQ4 and FP4 have unequal ones, so there it is that of an even grid
with as much room for errors as the cells of the values that the group has. For code books it is the distance from one
level to the next, which is all that the rounding error needs: it is a multiple of it.

The mean of F16 and BF16, which have no blocks, is taken in the same way, so that everything that was rounded looks
alike.

Source: the layouts of `ggml-common.h` of llama.cpp v0.5.0, as in `ggufmerge.quants`.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.quants import grid_of
from ggufmerge.quants.units import TYPES, units
from ggufmerge.types import TensorType

GROUP = 16  # values; the groups of every type are some of these
MANTISSA = {TensorType.F16: 10, TensorType.BF16: 7}  # bits

Floats = NDArray[np.float32]


def groups_of(n: int) -> int:
    """How many groups a row of n values has: of GROUP values, or one where these do not fit."""
    return n // GROUP if n % GROUP == 0 else 1


def squared_steps(raw: NDArray[np.uint8], values: Floats, kind: TensorType, out: Floats) -> None:
    """Fill `out`, float32 [rows, groups_of(n)], with the squares of the steps of each GROUP of values.

    raw: the rows as they are stored, uint8 [rows, row bytes].  values: what they stand for, float32 [rows, n].
    Of types without steps it is 0, as of groups that can hold only one value.
    """
    grid = grid_of(kind)
    if grid is not None and grid.levels:
        widths, middle = _widths(kind, grid.levels)
        _fill_uneven(values, units(raw, kind), widths, middle, out)
    elif kind in TYPES:
        # code books are so coarse that the error is a multiple of the distance of their levels
        found = units(raw, kind) * np.float32(grid.spacing if grid is not None and grid.book else 1)
        out[:] = np.repeat(found * found, out.shape[1] // found.shape[1], axis=1)
    elif kind in MANTISSA:
        # in [1, 2) the step is 2^-m and the mean of the squares of values 7 / 3
        mean = np.square(values.reshape(*out.shape, -1)).mean(axis=2)
        out[:] = mean * np.float32(3 / 7 * 4.0 ** -MANTISSA[kind])
    else:
        out[:] = 0


@kernel
def _fill_uneven(values, units, widths, middle, out):
    """See `squared_steps`; widths: float32, squared, of the value k units at k + middle."""
    size = values.shape[1] // units.shape[1]
    group = values.shape[1] // out.shape[1]
    for i in range(out.shape[0]):
        for g in range(out.shape[1]):
            unit = units[i, g * group // size]
            per_unit = np.float32(1) / unit if unit != 0 else np.float32(0)
            total = np.float32(0)
            for j in range(g * group, (g + 1) * group):
                k = int(np.rint(values[i, j] * per_unit)) + middle
                total += widths[min(max(k, 0), widths.size - 1)]
            out[i, g] = total / np.float32(group) * unit * unit


@functools.cache
def _widths(kind: TensorType, levels: tuple[int, ...]) -> tuple[Floats, int]:
    """For each whole number of units the square of the step of an even grid with the same error, and the place of 0."""
    points = np.array(levels, np.float64)
    half = np.diff(points) / 2
    # the scale of MXFP4 leaves values of up to 16 units to the last point
    low, high = (4.0, 4.0) if kind == TensorType.MXFP4 else half[[0, -1]]
    below, above = np.append(low, half), np.append(half, high)
    squares = 4 * (below**3 + above**3) / (below + above)  # 12 times the mean square of the distance to the point
    middle = int(np.abs(points).max())
    found = np.zeros(2 * middle + 1, np.float32)
    found[points.astype(int) + middle] = squares
    found.setflags(write=False)
    return found, middle
