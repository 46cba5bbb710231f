"""Encoders: how weights that were changed become blocks of a type. A recipe names one with `rounding`.

`nearest` does what ggml does. `stochastic` keeps the scales of the blocks that the weights had and moves each weight to
one of the two values beside it, so that a small change outlives quantization: the weights of a quantized model lie on
the grids of their blocks, and a change smaller than half a step moves none of them when each is rounded to its nearest
neighbour, so nearly all of an ordinary fine-tune's change is lost. Rounding up with the probability of the fraction
instead keeps the change in expectation, exactly: what is added is noise without a direction, of variance
step^2 f (1 - f) for the fraction f, while the change has one and adds up over a row.

Where several weights are one entry of a code book (IQ1 to IQ3), these are moved together: rarely, but then by a change
that is as large as a step, and dithered by a step, so that what is nearest to it is on average where the change wants
to go.

Other packages add encoders by entry points of the group `ggufmerge.encoders`: see docs/plugins.md.

Source: Gupta et al., "Deep learning with limited numerical precision" (2015), section 3.1; for dither, Gray and
Stockham, "Dithered quantizers" (1993). What it does for adapters is measured in `docs/rounding.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufmerge import plugins
from ggufmerge.errors import GgufmergeError, nearest
from ggufmerge.kernels import kernel
from ggufmerge.quants.calibrated.moments import Moments
from ggufmerge.quants.calibrated.rounding import encode_calibrated
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.half import inlined
from ggufmerge.quants.units import units

Floats = NDArray[np.float32]
Raw = NDArray[np.uint8]

CALIBRATED = "calibrated"  # what a recipe calls writing with correlations


class Arrays(Protocol):
    """Gives arrays to work in, of anything; what a name was given before is overwritten."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: type[np.generic], /) -> NDArray[Any]: ...


def new_array(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array of its own."""
    return np.empty(shape, dtype)


@dataclass(frozen=True)
class Piece:
    """Some rows of one matrix that are to be written, and what is known of them.

    rows: the weights, float32 [k, n].
    base: the same rows without their change, float32 [k, n]; None when they are no change of anything.
    blocks: the bytes of `base`, uint8 [k, row bytes], where it is stored in the type that is written; they stand for
        (base + offset) / scale. None where it is not.
    stored: values and bytes of these rows in inputs that have the type already, float32 [k, n] and uint8 [k, row
        bytes]. Blocks that are left as they are in one of them keep their bytes: quantizing them anew would move them
        a little.
    weights: the importance of each column, float32 [n]; None without.
    moments: of the inputs of these rows (`calibrated`); None without.
    offset, scale: what is quantized is (weight + offset) / scale; a scale of None is 1.
    chance: fills an array, uint32 [k * n], with the random words of these weights; None for encoders that leave nothing
        to chance.
    array: for what is needed beside the blocks, such as a thread's own arrays that are used again: making them for each
        piece takes as long as rounding does.
    """

    rows: Floats
    base: Floats | None = None
    blocks: Raw | None = None
    stored: Sequence[tuple[Floats, Raw]] = ()
    weights: Floats | None = None
    moments: Moments | None = None
    offset: float = 0.0
    scale: np.float32 | None = None
    chance: Callable[[NDArray[np.uint32]], None] | None = None
    array: Arrays = new_array


class Encoder(ABC):
    """A way to write weights in a type. It has no state: several threads may encode at once."""

    name: str  # in recipes and plans
    needs_grid = False  # whether it writes only changes of weights that lie on a grid already, and keeps that

    @abstractmethod
    def targets(self, codec: Codec, piece: Piece) -> Floats:
        """The weights, float32 [k, n], whose nearest neighbours are written; never in place."""

    def encode(self, codec: Codec, piece: Piece, raw: Raw) -> Floats:
        """Fill `raw`, uint8 [k, row bytes], with the blocks of a piece; gives what was quantized, float32 [k, n]."""
        target = self.targets(codec, piece)
        scaled = target + np.float32(piece.offset) if piece.offset else target
        if piece.scale is not None:
            units = piece.array("encoder units", piece.rows.shape, np.float32)
            with np.errstate(over="ignore"):  # what a very small scale makes infinite is for the caller to refuse
                scaled = np.divide(scaled, piece.scale, out=units)
        if self.needs_grid and piece.blocks is not None and codec.recode is not None:
            keep_scales(codec, np.ascontiguousarray(piece.blocks), scaled, raw, piece.weights, piece.array)
        elif piece.moments is not None:
            encode_calibrated(codec, scaled, piece.moments, raw)
        else:
            codec.encode(scaled, raw, piece.weights)
        if piece.moments is None:  # else the errors of other blocks are made up for in those that do not change, too
            for values, data in piece.stored:
                keep_blocks(target, values, data, raw, codec.type.block_size)
        return scaled


class Nearest(Encoder):
    """Each weight becomes the neighbour that ggml's quantizer gives it."""

    name = "nearest"

    def targets(self, codec: Codec, piece: Piece) -> Floats:
        return piece.rows


class Stochastic(Encoder):
    """Each change is rounded onto the grid of its block at random, and on average to where it was."""

    name = "stochastic"
    needs_grid = True

    def targets(self, codec: Codec, piece: Piece) -> Floats:
        if piece.base is None or piece.blocks is None:
            return piece.rows
        assert piece.chance is not None, "given with a base"
        luck = piece.array("encoder luck", (piece.rows.size,), np.uint32)
        piece.chance(luck)
        return round_on_grid(codec, piece, luck.reshape(piece.rows.shape))


_ENCODERS: dict[str, Encoder] = {}


def register(encoder: Encoder) -> None:
    """Make an encoder known by its name. GgufmergeError when there is another one of that name."""
    if encoder.name in _ENCODERS:
        raise GgufmergeError(f'there is an encoder "{encoder.name}" already: give yours another name')
    _ENCODERS[encoder.name] = encoder


for _encoder in (Stochastic(), Nearest()):
    register(_encoder)


def encoder_names() -> tuple[str, ...]:
    """The names of all encoders; those of other packages, which may turn out not to work, are the last."""
    return (*_ENCODERS, *plugins.ENCODERS.names(_ENCODERS))


def encoder(name: str) -> Encoder:
    """The encoder of this name; GgufmergeError suggests the nearest name, PluginError says why a plug-in fails."""
    if name in _ENCODERS:
        return _ENCODERS[name]
    plugin = plugins.ENCODERS.find(name)
    if plugin is None:
        raise GgufmergeError(f'unknown rounding "{name}": {nearest(name, encoder_names())}')
    found: Encoder = plugin.checked(plugin.value, Encoder, name, "is not an Encoder")
    return found


def package_of(name: str) -> str:
    """The name and version of the package that adds an encoder; "" for one that is built in or registered."""
    return "" if name in _ENCODERS else plugins.ENCODERS.package(name)


def round_on_grid(codec: Codec, piece: Piece, luck: NDArray[np.uint32]) -> Floats:
    """The rows of a piece moved onto the grids of its blocks, float32 [k, n], at random and on average to where they
    are. What lies outside of the range of a block is not brought back into it here.

    luck: a random word for each, uint32 [k, n].
    """
    grid = codec.grid
    if grid is None or piece.base is None or piece.blocks is None:
        raise GgufmergeError(f"{codec.type} has no grid to round on")
    rows, base = piece.rows, piece.base
    scales = units(piece.blocks, codec.type)
    if piece.scale is not None:
        scales = scales * piece.scale
    out: Floats = piece.array("encoder rows", rows.shape, np.float32)
    if grid.book:
        _round_entries(base, rows, luck, scales * np.float32(grid.spacing), grid.gain, grid.book, out)
    elif grid.levels:
        below, above, middle = _gaps(grid)
        _round_on_levels(base, rows, luck, scales, below, above, middle, piece.offset, grid.gain, out)
    else:
        _round(base, rows, luck, scales * np.float32(grid.spacing), grid.gain, out)
    return out


def keep_scales(
    codec: Codec, blocks: Raw, x: Floats, raw: Raw, weights: Floats | None = None, array: Arrays = new_array
) -> None:
    """Fill `raw`, uint8 [k, row bytes], with `x`, float32 [k, n], in blocks that have the scales of `blocks`.

    Where that cuts off more of a block than a new grid costs, which is a twelfth of the squares of its steps, the block
    is quantized anew, if that is nearer.  weights: as in `Piece`, for those.
    """
    assert codec.recode is not None, "types with scales can be recoded"
    assert codec.grid is not None, "and have a grid"
    codec.recode(blocks, x, raw)
    if codec.grid.book:
        return  # its entries are far from most of what is wanted, whatever the scale
    back: Floats = array("encoder back", x.shape, np.float32)
    codec.dequantize(raw, back)
    steps = units(blocks, codec.type) * np.float32(codec.grid.spacing)
    size = codec.type.block_size
    cut = array("encoder cut", (x.shape[0], x.shape[1] // size), np.float64)
    _fill_cut(x, back, steps, size, cut)
    anew = np.flatnonzero((cut > 0).any(axis=1))
    if not anew.size:
        return
    rows = np.ascontiguousarray(x[anew])
    found, values = np.empty((len(anew), raw.shape[1]), np.uint8), np.empty_like(rows)
    codec.encode(rows, found, weights)
    codec.dequantize(found, values)
    _take_nearer(rows, values, found, cut, anew, size, raw)


def warm_up(codec: Codec, rows: Floats, imatrix: Floats | None) -> None:
    """Compile (or load from numba's cache) the kernels that write `rows` in a type."""
    raw = np.empty((len(rows), codec.type.row_bytes(rows.shape[1])), np.uint8)
    codec.encode(rows, raw, imatrix)
    data = raw.copy()
    data.setflags(write=False)  # as in a mapped file
    keep_blocks(rows, rows, data, raw, codec.type.block_size)
    codec.damaged(raw)
    if codec.grid is not None:
        base = np.empty_like(rows)
        codec.dequantize(data, base)
        target = round_on_grid(codec, Piece(rows, base, data), np.zeros(rows.shape, np.uint32))
        keep_scales(codec, data, target, raw, imatrix)


@cache
def _gaps(grid: Grid) -> tuple[Floats, Floats, int]:
    """How many units it is from the level k units to the one below it and above it, at k + the last figure."""
    middle = max(map(abs, grid.levels))
    below, above = np.ones(2 * middle + 1, np.float32), np.ones(2 * middle + 1, np.float32)
    at = np.array(grid.levels) + middle
    gaps = np.diff(grid.levels).astype(np.float32)
    below[at], above[at] = np.insert(gaps, 0, gaps[0]), np.append(gaps, gaps[-1])
    return below, above, middle


@kernel
def _round(base, rows, luck, steps, gain, out):
    """See `round_on_grid`; steps: float32 [k, groups], of either sign."""
    group = rows.shape[1] // max(1, steps.shape[1])
    for i in range(rows.shape[0]):
        for g in range(steps.shape[1]):
            first, step = g * group, np.float64(abs(steps[i, g]))
            if step == 0:
                for j in range(first, first + group):
                    out[i, j] = rows[i, j]
                continue
            per_step = 1 / step
            for j in range(first, first + group):
                t = (np.float64(rows[i, j]) - np.float64(base[i, j])) * per_step
                if abs(t) < 1:
                    t = min(max(t * gain, -1.0), 1.0)
                k = np.floor(t)
                k += luck[i, j] < (t - k) * 4294967296.0
                out[i, j] = base[i, j] + step * k


@kernel
def _round_on_levels(base, rows, luck, units, below, above, middle, offset, gain, out):
    """The same where values are `units`, float32 [k, groups], times a level; below, above: of `_gaps`."""
    group = rows.shape[1] // max(1, units.shape[1])
    last = 2 * middle
    for i in range(rows.shape[0]):
        for g in range(units.shape[1]):
            unit = np.float64(units[i, g])
            for j in range(g * group, (g + 1) * group):
                if unit == 0:
                    out[i, j] = rows[i, j]
                    continue
                rest = (np.float64(rows[i, j]) - np.float64(base[i, j])) / unit
                at = int(np.rint((np.float64(base[i, j]) + offset) / unit)) + middle
                moved = np.float64(0)
                gap = np.float64(above[min(max(at, 0), last)] if rest > 0 else below[min(max(at, 0), last)])
                if abs(rest) < gap:
                    rest = min(max(rest * gain, -gap), gap)
                while abs(rest) >= gap:
                    jump = gap if rest > 0 else -gap
                    moved += jump
                    rest -= jump
                    at += int(jump)
                    if at < 0 or at > last:  # outside of the block's range
                        moved += rest
                        rest = np.float64(0)
                        break
                    gap = np.float64(above[at] if rest > 0 else below[at])
                if luck[i, j] < abs(rest) / gap * 4294967296.0:
                    moved += gap if rest > 0 else -gap
                out[i, j] = base[i, j] + unit * moved


@kernel
def _round_entries(base, rows, luck, steps, gain, width, out):
    """Entries of `width` weights, moved together; steps: float32 [k, groups], of either sign.

    One whose largest change is a share p of a step is moved with the probability p * gain: by the change / p, dithered.
    """
    group = rows.shape[1] // max(1, steps.shape[1])
    for i in range(rows.shape[0]):
        for first in range(0, rows.shape[1], width):
            step = abs(np.float64(steps[i, first // group]))
            largest = np.float64(0)
            for j in range(first, first + width):
                largest = max(largest, abs(np.float64(rows[i, j]) - np.float64(base[i, j])))
            part = 1.0 if largest >= step else largest / step  # of a step
            chance = min(1.0, part * gain)
            drawn = luck[i, first] / 4294967296.0
            if drawn >= chance:
                for j in range(first, first + width):
                    out[i, j] = base[i, j] if step > 0 else rows[i, j]
                continue
            for j in range(first, first + width):
                dither = (drawn / chance if j == first else luck[i, j] / 4294967296.0) - 0.5
                change = np.float64(rows[i, j]) - np.float64(base[i, j])
                out[i, j] = base[i, j] + change / part + step * dither


@inlined
def _squared_error(wanted, found):
    """The sum of the squared differences of float32 [n], in float64."""
    error = np.float64(0)
    for j in range(wanted.size):
        d = np.float64(wanted[j]) - np.float64(found[j])
        error += d * d
    return error


@kernel
def _fill_cut(x, back, steps, size, out):
    """The squared error of each block of `size` values where it is more than a new grid costs, else 0; float64
    [k, blocks].  x, back: float32 [k, n], wanted and written.  steps: float32 [k, groups]."""
    group = x.shape[1] // max(1, steps.shape[1])
    for i in range(x.shape[0]):
        for b in range(out.shape[1]):
            first = b * size
            error = _squared_error(x[i, first : first + size], back[i, first : first + size])
            cost = np.float64(0)
            for j in range(first, first + size):
                cost += np.float64(steps[i, j // group]) * np.float64(steps[i, j // group])
            out[i, b] = error if error * 12 > cost else 0.0


@kernel
def _take_nearer(x, values, found, cut, rows, size, raw):
    """Put those blocks of `found` into `raw` whose `values` are nearer to `x` than `cut`, of all rows; see
    `keep_scales`. rows: the numbers of these rows."""
    blocks = x.shape[1] // size
    width = raw.shape[1] // blocks
    for i in range(x.shape[0]):
        for b in range(blocks):
            first = b * size
            if _squared_error(x[i, first : first + size], values[i, first : first + size]) < cut[rows[i], b]:
                raw[rows[i], b * width : (b + 1) * width] = found[i, b * width : (b + 1) * width]


@kernel
def keep_blocks(rows, values, data, raw, size):
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
