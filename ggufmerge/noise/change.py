"""How much two quantized tensors really differ: the size of a change beside the rounding errors of both.

What is seen is (x + change + error of one) - (x + error of the other). Sums over groups of neighbouring weights, sorted
by their step into bins of a quarter of an octave, are gathered while rows stream by (`add_pairs`); from them come

- the difference as it is, where nothing was rounded, or both read the same stored bytes;
- what has to be there to make the jumps that are seen, where both files have the same type and were rounded alike, so
  that their grids are nearly the same (`factors.Noise.jumps`);
- the difference less the errors of both, which are independent of each other, elsewhere.

Rows that changed much more than others, as those of some words in an embedding, are gathered by themselves. The change
of a bin is taken to be normally distributed. One that is concentrated in fewer weights makes fewer and larger jumps,
and is underestimated while it is below a step: that of real fine-tunes by about a tenth.

None of this can be known from the file: whether the weights lay on this grid before they were rounded (files that were
quantized twice, quantization-aware training). Then there is no error where one is expected, and a change that was
written on the grid of its base has been lost for good.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.noise.factors import Noise, noise_of
from ggufmerge.noise.steps import GROUP
from ggufmerge.quants.half import inlined
from ggufmerge.quants.simd import load, store
from ggufmerge.types import TensorType

BINS = 256
CLASSES = 12  # of rows: those whose differences are small beside their steps, and others by octaves of their ratio
LARGE = 0.25  # mean square of the differences in steps^2, from which on a single row shows the size of its change
_ZERO = 160  # bin of steps with squares from 1/2 to 0.71
_MIN_VALUES = 4096  # of a bin that is looked at by itself
_SURE = 3  # times its standard error a change has to be, to be seen
_CALIBRATION = 0.1  # relative error of the variance of one file's errors

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Rounding:
    """How the weights of a file were rounded.

    kind: their type.  matrix: what tells the importance matrix from another one, None without.
    moved: whether something was added to them since, so that they are off their grid.
    """

    kind: TensorType
    matrix: str | None = None
    moved: bool = False

    @property
    def noise(self) -> Noise | None:
        """What is known of its errors; None for types without steps."""
        return noise_of(self.kind, self.matrix is not None)

    def alike(self, other: Rounding) -> bool:
        """Whether the same weights have the same errors in both."""
        same_matrix = self.matrix == other.matrix or not _heeds_matrix(self.kind)
        return self.kind == other.kind and same_matrix and not (self.moved or other.moved)

    def variance(self, squares: float, steps_squared: float) -> float:
        """Of the errors, summed up as the arguments are: of the squares of values, and of their steps."""
        if self.noise is None:
            return steps_squared / 12
        return self.noise.factor(squares / steps_squared) * steps_squared / 12 if steps_squared else 0.0


def _heeds_matrix(kind: TensorType) -> bool:
    return noise_of(kind, True) != noise_of(kind, False)


@kernel
def add_pairs(x, squares, pairs, blocks, sums, same):
    """Add up what pairs of models differ by.

    x: float32 [models, rows, n].  squares: float32 [models, rows, groups], of the steps.  pairs: int64 [pairs, 2].
    blocks: int64 [pairs], groups of a block.
    sums: float64 [pairs, CLASSES, BINS, 4], added to: how many values, the squares of their differences, the mean of
        the squares of the two steps, and the squares of the sums of squares of blocks, in the bin of their last group.
    same: float64 [pairs, 2], added to: blocks without a difference, and all blocks.
    """
    _, rows, n = x.shape
    flat, groups = x.reshape(x.size), squares.shape[2]
    size = n // max(groups, 1)
    values = np.empty(16, np.float32)
    totals, squared, bins = np.empty(groups), np.empty(groups), np.empty(groups, np.int64)
    for p in range(pairs.shape[0]):
        for i in range(rows):
            first, second = (pairs[p, 0] * rows + i) * n, (pairs[p, 1] * rows + i) * n
            for g in range(groups):
                total = 0.0
                start, stop = g * size, (g + 1) * size
                for j in range(start, stop - 15, 16):
                    d = load(flat, first + j, 16) - load(flat, second + j, 16)
                    store(values, 0, d * d)
                    total += _sum_of_16(values)
                for j in range(start + size // 16 * 16, stop):
                    one = np.float64(flat[first + j]) - np.float64(flat[second + j])
                    total += one * one
                step = (np.float64(squares[pairs[p, 0], i, g]) + np.float64(squares[pairs[p, 1], i, g])) / 2
                k = 0
                if step > 0:
                    m, e = math.frexp(step)
                    k = min(max(2 * e + (m >= 0.70710678) + _ZERO, 1), BINS - 1)
                totals[g], squared[g], bins[g] = total, step * size, k
            in_row, steps_in_row = totals.sum(), squared.sum()
            c = 0
            if in_row >= LARGE * steps_in_row and steps_in_row > 0:
                c = min(math.frexp(in_row / (LARGE * steps_in_row))[1], CLASSES - 1)
            in_block = 0.0
            for g in range(groups):
                k = bins[g]
                sums[p, c, k, 0] += size
                sums[p, c, k, 1] += totals[g]
                sums[p, c, k, 2] += squared[g]
                in_block += totals[g]
                if (g + 1) % blocks[p] == 0:
                    sums[p, c, k, 3] += in_block * in_block
                    same[p, 0] += in_block == 0
                    same[p, 1] += 1
                    in_block = 0.0


@inlined
def _sum_of_16(v):
    """As a tree, whose branches a processor adds up at the same time."""
    low = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))
    high = ((v[8] + v[9]) + (v[10] + v[11])) + ((v[12] + v[13]) + (v[14] + v[15]))
    return np.float64(low + high)


@dataclass(frozen=True)
class Estimate:
    """The squares of a change, summed over weights; estimates of several tensors can be added up.

    seen: of the difference between the files.  change: of what is likely to be behind it.
    chance, doubt: standard errors of `change`: of what was counted, which even out over tensors, and of the measured
        factors, which are those of all tensors.
    """

    seen: float = 0.0
    change: float = 0.0
    chance: float = 0.0
    doubt: float = 0.0

    @property
    def error(self) -> float:
        """Standard error of `change`."""
        return math.hypot(self.chance, self.doubt)

    @property
    def visible(self) -> bool:
        """Whether the change stands out of the noise: its square is at least three times as large as its error."""
        return self.change >= self.needed

    @property
    def needed(self) -> float:
        """The least square of a change that would be seen."""
        return _SURE * self.error

    @property
    def noise(self) -> float:
        """Of the rounding errors that are in the difference."""
        return max(self.seen - self.change, 0.0) if self.visible else self.seen

    def __add__(self, other: Estimate) -> Estimate:
        chance, doubt = math.hypot(self.chance, other.chance), self.doubt + other.doubt
        return Estimate(self.seen + other.seen, self.change + other.change, chance, doubt)


def exact(sums: Sums) -> Estimate:
    """What is seen, where both files have the same errors or none. sums: [CLASSES, BINS, 4] of `add_pairs`."""
    seen = float(sums[..., 1].sum())
    return Estimate(seen, seen)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file. squares, steps_squared: sums over its weights of the squares of values and of their steps."""

    rounding: Rounding
    squares: float
    steps_squared: float

    @property
    def variance(self) -> float:
        """Of its rounding errors, summed over the weights."""
        return self.rounding.variance(self.squares, self.steps_squared)

    @property
    def squares_in_steps(self) -> float:
        return self.squares / self.steps_squared if self.steps_squared else 0.0


def estimate(sums: Sums, first: Stored, second: Stored) -> Estimate:
    """The change between two tensors. sums: [CLASSES, BINS, 4] of `add_pairs`."""
    if first.rounding.alike(second.rounding):
        return _from_jumps(sums, first)
    seen, noise = float(sums[..., 1].sum()), first.variance + second.variance
    by_chance = math.sqrt(float(sums[..., 3].sum()))
    return Estimate(seen, max(seen - noise, 0.0), by_chance, _CALIBRATION * noise)


def _from_jumps(sums: Sums, stored: Stored) -> Estimate:
    """The same for files on nearly the same grid: bin by bin and class by class, so that parts of other steps and rows
    of other changes do not matter."""
    ratios, jumps, slopes, spread = _curve(stored.rounding, round(stored.squares_in_steps, 2))
    found = exact(sums[:, :1])
    block = max(stored.rounding.kind.block_size, GROUP)  # its weights jump together where another scale is chosen
    for values, seen, steps_squared, fourth in (bin_ for rows in sums for bin_ in _merged(rows[1:])):
        if not seen:
            continue
        log = math.log(seen / steps_squared)
        ratio = math.exp(float(np.interp(log, jumps, ratios)))
        if log < jumps[0]:  # jumps are rarer than any that were measured: the curve goes on in proportion
            ratio *= math.exp(log - jumps[0])
        change = ratio * ratio * steps_squared
        by_chance = math.sqrt(max(fourth - seen * seen * block / values, 0.0)) / seen
        slope = 2 * float(np.interp(log, jumps, slopes))
        found += Estimate(seen, change, change * slope * by_chance, change * slope * spread)
    return found


def _merged(sums: Sums) -> list[Sums]:
    """Bins with enough values to be looked at, the first of them in front: small ones go together with the next."""
    merged: list[Sums] = []
    rest = np.zeros(4)
    for one in sums[sums[:, 0] > 0]:
        rest = rest + one
        if rest[0] >= _MIN_VALUES:
            merged.append(rest)
            rest = np.zeros(4)
    if rest[0]:
        if merged:
            merged[-1] = merged[-1] + rest
        else:
            merged.append(rest)
    return merged


@functools.lru_cache(1024)
def _curve(rounding: Rounding, squares_in_steps: float) -> tuple[Sums, Sums, Sums, float]:
    """Logarithms of changes and of the squares that they make, in steps, d log(change) / d log(square), and the
    standard deviation of the second between kinds of weights."""
    ratios = np.exp2(np.arange(-8, 8.01, 0.125))
    noise = rounding.noise
    squares = noise.jumps(ratios, squares_in_steps) if noise else _on_fixed_grid(ratios)
    logs = np.maximum.accumulate(np.log(squares)) + np.arange(ratios.size) * 1e-9  # none like the one before it
    return np.log(ratios), logs, np.gradient(np.log(ratios), logs), noise.spread if noise else 0.0


def _on_fixed_grid(ratios: Sums) -> Sums:
    """Of normal changes of weights anywhere between the points of a grid that stays where it is."""
    z = (np.arange(2000) + 0.5) / 2000 * 6
    weight = np.exp(-z * z / 2)
    moved = ratios[:, None] * z
    whole = np.floor(moved)
    squares: Sums = ((whole * whole + (2 * whole + 1) * (moved - whole)) * weight).sum(axis=1) / weight.sum()
    return squares


def cosine(first: Estimate, second: Estimate, between: Estimate) -> float:
    """Of two changes of one base, by the three distances, from which the errors that they share are gone.

    NaN when one of the changes cannot be seen.
    """
    if not (first.change and second.change and first.visible and second.visible):
        return math.nan
    found = (first.change + second.change - between.change) / (2 * math.sqrt(first.change * second.change))
    return min(max(found, -1.0), 1.0)


def same_sign(cosine: float) -> float:
    """The share of weights that two normally distributed changes of this cosine move in the same direction."""
    return 0.5 + math.asin(cosine) / math.pi if cosine == cosine else math.nan
