"""Encoders: how weights that were changed become blocks of a type. A recipe names one with `rounding`.

`nearest` does what ggml does. `stochastic` moves each weight onto the grid that its block has already, so that a small
change outlives quantization: the weights of a quantized model lie on the grids of their blocks, and a change smaller
than half a step moves none of them when each is rounded to its nearest neighbour, so nearly all of an ordinary
fine-tune's change is lost. Rounding up with the probability of the fraction instead keeps the change in expectation,
exactly: what is added is noise without a direction, of variance step^2 f (1 - f) for the fraction f, while the change
has one and adds up over a row.

Other packages add encoders by entry points of the group `ggufmerge.encoders`: see docs/plugins.md.

Source: Gupta et al., "Deep learning with limited numerical precision" (2015), section 3.1. What it does for adapters is
measured in `docs/lora.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufmerge import plugins
from ggufmerge.errors import GgufmergeError, nearest
from ggufmerge.kernels import kernel
from ggufmerge.quants.codec import Codec

Floats = NDArray[np.float32]
Raw = NDArray[np.uint8]


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
    stored: values and bytes of these rows in inputs that have the type already, float32 [k, n] and uint8 [k, row
        bytes]. Blocks that are left as they are in one of them keep their bytes: quantizing them anew would move them
        a little.
    weights: the importance of each column, float32 [n]; None without.
    offset, scale: what is quantized is (weight + offset) / scale; a scale of None is 1.
    chance: fills an array, uint32 [k * n], with the random words of these weights; None for encoders that leave nothing
        to chance.
    array: for what is needed beside the blocks, such as a thread's own arrays that are used again: making them for each
        piece takes as long as rounding does.
    """

    rows: Floats
    base: Floats | None = None
    stored: Sequence[tuple[Floats, Raw]] = ()
    weights: Floats | None = None
    offset: float = 0.0
    scale: np.float32 | None = None
    chance: Callable[[NDArray[np.uint32]], None] | None = None
    array: Arrays = new_array


class Encoder(ABC):
    """A way to write weights in a type. It has no state: several threads may encode at once."""

    name: str  # in recipes and plans
    needs_grid = False  # whether it writes only types with a uniform grid, and only changes of weights that lie on it

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
        codec.encode(scaled, raw, piece.weights)
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
        if piece.base is None:
            return piece.rows
        assert piece.chance is not None, "given with a base"
        luck = piece.array("encoder luck", (piece.rows.size,), np.uint32)
        piece.chance(luck)
        return round_on_grid(codec, piece.base, piece.rows, luck.reshape(piece.rows.shape), piece.array)


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


def round_on_grid(
    codec: Codec, base: Floats, rows: Floats, luck: NDArray[np.uint32], array: Arrays = new_array
) -> Floats:
    """`rows` moved onto the grids of `base`, float32 [k, n], at random and on average to where they are.

    base: the same weights before their change, dequantized from blocks of the codec, which has a grid.
    luck: a random word for each, uint32 [k, n].  array: as in `Piece`.
    Groups of equal values have no grid and stay as they are in `rows`.
    """
    grid = codec.grid
    if grid is None:
        raise GgufmergeError(f"{codec.type} has no uniform grid to round on")
    steps = array("encoder steps", (base.shape[0], base.shape[1] // grid.group), np.float64)
    grid.steps(base, steps)
    out: Floats = array("encoder rows", rows.shape, np.float32)
    _round(base, rows, luck, steps, out)
    return out


def warm_up(codec: Codec, rows: Floats, imatrix: Floats | None) -> None:
    """Compile (or load from numba's cache) the kernels that write `rows` in a type."""
    raw = np.empty((len(rows), codec.type.row_bytes(rows.shape[1])), np.uint8)
    codec.encode(rows, raw, imatrix)
    data = raw.copy()
    data.setflags(write=False)  # as in a mapped file
    keep_blocks(rows, rows, data, raw, codec.type.block_size)
    codec.damaged(raw)
    if codec.grid is not None:
        round_on_grid(codec, rows, rows, np.zeros(rows.shape, np.uint32))


@kernel
def _round(base, rows, luck, steps, out):
    """See `round_on_grid`; steps: float64 [k, groups]."""
    group = rows.shape[1] // max(1, steps.shape[1])
    for i in range(rows.shape[0]):
        for g in range(steps.shape[1]):
            first, step = g * group, steps[i, g]
            if step == 0:
                for j in range(first, first + group):
                    out[i, j] = rows[i, j]
                continue
            per_step = 1 / step
            for j in range(first, first + group):
                t = (np.float64(rows[i, j]) - np.float64(base[i, j])) * per_step
                k = np.floor(t)
                k += luck[i, j] < (t - k) * 4294967296.0
                out[i, j] = base[i, j] + step * k


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
