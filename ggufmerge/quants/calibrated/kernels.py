"""The kernels of calibrated rounding: LANES rows of a matrix side by side, column after column.

Arrays are float32 and one-dimensional, and hold rows of LANES values (`quants.lanes`): row i of a tile of rows of the
matrix is column i of LANES of them. Sums run in the order of the columns and nothing is contracted, so the result has
the same bits on every processor, however the rows of a matrix are cut into pieces.
"""

from __future__ import annotations

import numpy as np

from ggufmerge.kernels import kernel
from ggufmerge.quants.half import inlined
from ggufmerge.quants.lanes import LANES, F, constant, nearest, row, set_row
from ggufmerge.quants.simd import load, select, store


@kernel
def to_lanes(rows, out):
    """Rows [k, n] to tiles of columns; lanes without a row of their own get zeros."""
    k, n = rows.shape
    for tile in range((k + LANES - 1) // LANES):
        for lane in range(LANES):
            r = tile * LANES + lane
            for i in range(n):
                out[(tile * n + i) * LANES + lane] = rows[r, i] if r < k else F(0)


@kernel
def from_lanes(tiles, n, first, out):
    """Columns from `first` on of tiles with n columns to rows [k, count]."""
    k, count = out.shape
    for r in range(k):
        at = (r // LANES * n + first) * LANES + r % LANES
        for i in range(count):
            out[r, i] = tiles[at + i * LANES]


@kernel
def less_products(values, n, first, scale, coefficients, state, size, out):
    """out = scale * values - coefficients @ state, for `count` columns from `first` on of each tile.

    values: tiles of n columns.  scale: [count].  coefficients: [count, used].  state: tiles of `size` rows, of which
    the first `used` take part.  out: tiles of `count` columns. The count is even.
    """
    count, used = coefficients.shape
    for tile in range(values.size // (n * LANES)):
        for i in range(0, count, 2):
            a = row(values, tile * n + first + i) * scale[i]
            b = row(values, tile * n + first + i + 1) * scale[i + 1]
            for j in range(used):
                s = row(state, tile * size + j)
                a = a - s * coefficients[i, j]
                b = b - s * coefficients[i + 1, j]
            set_row(out, tile * count + i, a)
            set_row(out, tile * count + i + 1, b)


@kernel
def add_products(factors, errors, state):
    """state += factors^T @ errors.  factors: [count, size]; errors: tiles of `count` rows; state: tiles of `size`."""
    count, size = factors.shape
    for tile in range(errors.size // (count * LANES)):
        for j in range(0, size, 2):
            a, b = row(state, tile * size + j), row(state, tile * size + j + 1)
            for i in range(count):
                e = row(errors, tile * count + i)
                a = a + e * factors[i, j]
                b = b + e * factors[i, j + 1]
            set_row(state, tile * size + j, a)
            set_row(state, tile * size + j + 1, b)


@inlined
def _level(x, levels, middles, uniform):
    """The level nearest to x; the higher one of two."""
    if uniform:
        low, high = levels[0], levels[levels.size - 1]
        x = select(x > low, x, low)
        return nearest(select(x < high, x, high))
    found = constant(levels[0])
    for i in range(middles.size):
        found = select(x >= middles[i], levels[i + 1], found)
    return found


@inlined
def _round_group(tile, count, targets, present, within, weights, scale, low, levels, middles, uniform, moved, values):
    """Round a group of columns one after the other; gives the loss of each lane.

    What a column is moved by, from `present`, moves the targets of those after it by -within times that.
    """
    inverse = select(scale != F(0), F(1) / scale, F(0))
    loss = constant(0)
    for i in range(count):
        t = row(targets, tile * count + i)
        for j in range(i):
            t = t - row(moved, j) * within[i, j]
        v = _level((t - low) * inverse, levels, middles, uniform) * scale + low
        p = row(present, tile * count + i)
        set_row(moved, i, v - p)
        set_row(values, i, v)
        e, f = t - v, t - p
        loss = loss + (e * e - f * f) * weights[i]
    return loss


@kernel
def round_groups(targets, present, within, weights, scales, lows, levels, uniform, values, moved, chosen):
    """Round a group of columns of every row with each of some scales, and keep what costs least.

    targets, present, values, moved: tiles of `count` columns: where each column should be, what it is now, what it
    becomes, and by how much it moves.  within: [count, count], see `_round_group`.  weights: [count].
    scales, lows: [candidates, tiles * LANES]; the first of equally good ones is taken.  chosen: int64 [tiles * LANES].
    """
    count = weights.size
    middles = (levels[1:] + levels[:-1]) / F(2)
    trial, trial_moved = np.empty(count * LANES, np.float32), np.empty(count * LANES, np.float32)
    for tile in range(targets.size // (count * LANES)):
        at = tile * LANES
        best, which = constant(np.inf), constant(0)
        scale, low = load(scales[0], at, LANES), load(lows[0], at, LANES)
        for c in range(scales.shape[0]):
            d, m = load(scales[c], at, LANES), load(lows[c], at, LANES)
            loss = _round_group(
                tile, count, targets, present, within, weights, d, m, levels, middles, uniform, trial_moved, trial
            )
            better = loss < best
            best, which = select(better, loss, best), select(better, F(c), which)
            scale, low = select(better, d, scale), select(better, m, low)
        _round_group(
            tile, count, targets, present, within, weights, scale, low, levels, middles, uniform, trial_moved, trial
        )
        for i in range(count):
            set_row(values, tile * count + i, row(trial, i))
            set_row(moved, tile * count + i, row(trial_moved, i))
        for lane in range(LANES):
            chosen[at + lane] = 0
        store(trial, 0, which)
        for lane in range(LANES):
            chosen[at + lane] = int(trial[lane])
