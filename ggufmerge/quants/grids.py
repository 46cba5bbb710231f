"""Code books of the IQ1, IQ2 and IQ3 formats: groups of 8 or 4 values are stored as the index of a grid point.

The points are data of llama.cpp (`ggml-common.h`, MIT licence, Copyright (c) 2023-2024 The ggml authors), kept in
`grids.npz` as ggml keeps them: one uint16 code per point, the level of the first value in its lowest bits (2 bits a
level for points of 8 values, 3 bits for points of 4).

Quantizers round a group to levels first. When no grid point has these levels, they choose among the points nearest
to it; `code_book` holds those lists in ggml's order, which decides ties.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufmerge.quants.half import inlined
from ggufmerge.quants.simd import view

F = np.float32

NEIGHBOURS = 16  # compared at once

# Rings of equal distance around an unlisted group whose points are candidates (`nwant` in ggml's iq2xs_init_impl and
# iq3xs_init_impl); IQ1_M shares the grid of IQ1_S.
_RINGS = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3, "IQ3_XXS": 2, "IQ3_S": 3}

# What a level means when dequantized, before the scale.
_VALUES = {
    "IQ2_XXS": (8, 25, 43),
    "IQ2_XS": (8, 25, 43),
    "IQ2_S": (8, 25, 43),
    "IQ1_S": (-1, 0, 1),
    "IQ3_XXS": (4, 12, 20, 28, 36, 44, 52, 62),
    "IQ3_S": (1, 3, 5, 7, 9, 11, 13, 15),
}


class CodeBook(NamedTuple):
    """What a quantizer needs of a grid; a code is the levels of a group, packed as in `grids.npz`.

    point: int16 [codes], the grid index of a code, -1 where the grid has no such point.
    span: int32 [codes], where the neighbours of a code stand: `start << 9 | count`, 0 for grid points.
    neighbours: uint16, codes of grid points, nearest first, equally near ones by grid index; `NEIGHBOURS` zeros
        follow, so that a vector of so many may be loaded from any place.
    """

    point: NDArray[np.int16]
    span: NDArray[np.int32]
    neighbours: NDArray[np.uint16]


@functools.cache
def points(name: str) -> NDArray[np.float32]:
    """Float32 [points, 8 or 4]: the dequantized values of each grid point of a type, before scale and sign."""
    values = np.array(_VALUES[name], np.float32)
    return _read_only(values[_levels(_codes(name), _bits(name))])


@functools.cache
def levels(name: str) -> NDArray[np.float32]:
    """Float32 [3 or 8]: what each level of a type means, before the scale."""
    return _read_only(np.array(_VALUES[name], np.float32))


@functools.cache
def halves(name: str) -> NDArray[np.int32]:
    """Int32 [points, 2]: the levels of either half of each point as the digits of a number, the first value's digit in
    the highest place; numbers of second halves begin where those of first halves end.
    """
    count, digits = len(_VALUES[name]), _levels(_codes(name), _bits(name))
    width = digits.shape[1] // 2
    numbers = digits.reshape(-1, 2, width) @ (count ** np.arange(width - 1, -1, -1))
    numbers[:, 1] += count**width
    return _read_only(np.ascontiguousarray(numbers, np.int32))


@functools.cache
def code_book(name: str) -> CodeBook:
    """The code book for quantizing to a type. Built once (under 0.2 s); threads that race build the same arrays."""
    bits, codes = _bits(name), _codes(name)
    grid = _levels(codes, bits)
    width = grid.shape[1]
    everything = np.arange(1 << bits * width if bits == 3 else 0xAAAA + 1)
    point = np.full(everything.size, -1, np.int16)
    point[codes] = np.arange(codes.size)
    levels = _levels(everything, bits)
    unlisted = everything[(point < 0) & (levels.max(1) < len(_VALUES[name]))]
    span, lists, start = np.zeros(everything.size, np.int32), [], 0
    for part in np.array_split(unlisted, max(1, unlisted.size // 512)):
        code, neighbour = _nearest(levels[part], grid, _RINGS[name])
        count = np.bincount(code, minlength=part.size)
        span[part] = (start + np.cumsum(count) - count) << 9 | count
        lists.append(codes[neighbour])
        start += code.size
    lists.append(np.zeros(NEIGHBOURS, np.uint16))
    return CodeBook(_read_only(point), _read_only(span), _read_only(np.concatenate(lists)))


@functools.cache
def signs() -> NDArray[np.uint32]:
    """Uint32 [256, 8]: float32's sign bit for each set bit of a byte of signs, lowest bit first; see `flip`."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return _read_only(bits.astype(np.uint32) << np.uint32(31))


@inlined
def flip(values, signs):
    """A float vector with the sign bits `signs` turned. A product with -1 would leave the sign of a NaN as it is, which
    ggml does not.
    """
    return view(view(values, np.uint32) ^ signs, F)


@inlined
def even_signs(bits):
    """The byte of signs that 7 stored bits stand for: the eighth makes the number of negative values even."""
    parity = bits ^ bits >> np.uint32(4)
    parity ^= parity >> np.uint32(2)
    parity ^= parity >> np.uint32(1)
    return bits | (parity & np.uint32(1)) << np.uint32(7)


def _nearest(levels: NDArray[np.int32], grid: NDArray[np.int32], rings: int) -> tuple[NDArray[np.intp], ...]:
    """Pairs (row of `levels`, row of `grid`) within the `rings` smallest distinct distances of each row of `levels`,
    ordered by row, distance, grid index.
    """
    a, b = levels.astype(np.float32), grid.astype(np.float32)
    distance = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)  # small integers: exact
    limit = distance.min(1, keepdims=True)
    for _ in range(rings - 1):
        limit = np.where(distance > limit, distance, np.inf).min(1, keepdims=True)
    row, column = np.nonzero(distance <= limit)
    order = np.lexsort((column, distance[row, column], row))
    return row[order], column[order]


@functools.cache
def _archive() -> dict[str, NDArray[np.uint16]]:
    with np.load(Path(__file__).with_name("grids.npz")) as archive:
        return {name: archive[name].astype(np.uint16) for name in archive.files}


def _codes(name: str) -> NDArray[np.uint16]:
    return _archive()[name]


def _bits(name: str) -> int:
    return 3 if name.startswith("IQ3") else 2


def _levels(codes: NDArray[np.integer], bits: int) -> NDArray[np.int32]:
    """Codes [n] unpacked to levels [n, 8 or 4]."""
    shifts = np.arange(0, 16 if bits == 2 else 12, bits, dtype=np.int32)
    return (codes.astype(np.int32)[:, None] >> shifts) & ((1 << bits) - 1)


def _read_only(array: NDArray) -> NDArray:
    array.setflags(write=False)
    return array
