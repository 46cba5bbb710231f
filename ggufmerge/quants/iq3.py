"""IQ3_XXS and IQ3_S: groups of four values are a point of a grid times a scale, signs apart.

Super-blocks of 256 values with a float16 scale `d`; each 32 values have a 4-bit scale. IQ3_XXS has 256 grid points and
stores the signs of 8 values in 7 bits (an even number of them is negative); IQ3_S has 512 points and all the signs.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ggufmerge.kernels import kernel
from ggufmerge.quants import grids
from ggufmerge.quants.blocks import load_half, load_word, store_half, store_word
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.grids import even_signs, flip
from ggufmerge.quants.half import inlined
from ggufmerge.quants.iq import (
    ANY_OFF_GRID,
    LANES,
    OFF_GRID,
    Search,
    codec,
    quantize_scales,
    search_arrays,
    search_blocks,
)
from ggufmerge.quants.nearest_points import Groups, load_4, load_8, recode_blocks
from ggufmerge.quants.simd import load, store
from ggufmerge.types import TensorType

F = np.float32

XXS = Search(32, 4, 3, 8, 15, F(0.2), OFF_GRID, True, F(2), F(0), F(1e-8))
S = Search(32, 4, 3, 8, 9, F(0.2), ANY_OFF_GRID, False, F(2), F(0), F(1e-45))

EVEN, FREE = Groups(4, 2, True, F(0), False), Groups(4, 1, False, F(0), False)


@kernel
def _dequantize_iq3_xxs(raw, out, points, signs):
    """Block: d, 64 bytes of grid indices, 8 little-endian words: 4 times 7 signs, 4 bits of scale."""
    raw, y, points, signs = raw.ravel(), out.ravel(), points.ravel(), signs.ravel()
    for b in range(y.size // 256):
        block = 98 * b
        d = load_half(raw, block)
        for s in range(8):
            word, scale = _part_iq3_xxs(raw, block, d, 4 * s)
            for k in range(4 * s, 4 * s + 4):
                _write_iq3_xxs(raw, block, k, word, scale, (points, signs), y, 256 * b + 8 * k)


@kernel
def _dequantize_iq3_s(raw, out, points, signs):
    """Block: d, 64 bytes of grid indices, 8 of their ninth bits, 32 of signs, 4 of scale nibbles."""
    raw, y, points, signs = raw.ravel(), out.ravel(), points.ravel(), signs.ravel()
    for b in range(y.size // 256):
        block = 110 * b
        d = load_half(raw, block)
        for s in range(8):
            high, scale = _part_iq3_s(raw, block, d, 8 * s)
            for k in range(8 * s, 8 * s + 8):
                _write_iq3_s(raw, block, k, high, scale, (points, signs), y, 256 * b + 4 * k)


@kernel
def _recode_iq3_xxs(raw, x, out, points, signs, levels, halves):
    raw, x, out, points, signs = raw.ravel(), x.ravel(), out.ravel(), points.ravel(), signs.ravel()
    book = points, levels, halves
    recode_blocks(
        raw, x, out, book, EVEN, load_8, 98, load_half, _part_iq3_xxs, _write_iq3_xxs, (points, signs), _store_iq3_xxs
    )


@inlined
def _store_iq3_xxs(out, group, point, signs, found):
    block, k = 98 * (group // 32), group % 32
    out[block + 2 + 2 * k] = point[0]
    out[block + 3 + 2 * k] = point[1]
    at, place = block + 66 + 4 * (k // 4), np.uint32(7 * (k % 4))
    word = load_word(out, at) & ~(np.uint32(127) << place)
    store_word(out, at, word | np.uint32(signs & 127) << place)


@kernel
def _recode_iq3_s(raw, x, out, points, signs, levels, halves):
    raw, x, out, points, signs = raw.ravel(), x.ravel(), out.ravel(), points.ravel(), signs.ravel()
    book = points, levels, halves
    recode_blocks(
        raw, x, out, book, FREE, load_4, 110, load_half, _part_iq3_s, _write_iq3_s, (points, signs), _store_iq3_s
    )


@inlined
def _store_iq3_s(out, group, point, signs, found):
    block, k = 110 * (group // 64), group % 64
    high, place = block + 66 + k // 8, 4 * (k % 2)
    out[block + 2 + k] = point[0] & 255
    out[high] = out[high] & ~(1 << k % 8) | point[0] >> 8 << k % 8
    out[block + 74 + k // 2] = out[block + 74 + k // 2] & ~(15 << place) | signs << place


@kernel
def _quantize_iq3_xxs(x, out, imatrix, point, span, neighbours):
    """x: float32 [blocks * 256], out: uint8 [blocks * 98], imatrix: float32 [n of a row], empty for none."""
    blocks, book, arrays = x.size // 256, (span, neighbours), search_arrays()
    scales, _, codes, signs, _ = arrays
    steps, largest = np.empty(8 * LANES, np.int32), np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        largest_scale = search_blocks(x, imatrix, first, XXS, book, arrays)
        store(largest, 0, largest_scale)
        quantize_scales(scales, 8, largest_scale, 31, 15, steps)
        for lane in range(min(LANES, blocks - first)):
            o = 98 * (first + lane)
            if largest[lane] == F(0):
                out[o : o + 98] = 0
                continue
            store_half(out, o, largest[lane] / F(31) * F(1.0125))
            for k in range(64):
                out[o + 2 + k] = point[codes[k * LANES + lane]]
            for s in range(8):
                word = np.uint32(steps[s * LANES + lane]) << np.uint32(28)
                for k in range(4):
                    word |= np.uint32(signs[(4 * s + k) * LANES + lane]) << np.uint32(7 * k)
                for i in range(4):
                    out[o + 66 + 4 * s + i] = word >> np.uint32(8 * i) & np.uint32(255)


@kernel
def _quantize_iq3_s(x, out, imatrix, point, span, neighbours):
    """x: float32 [blocks * 256], out: uint8 [blocks * 110], imatrix: float32 [n of a row], empty for none."""
    blocks, book, arrays = x.size // 256, (span, neighbours), search_arrays()
    scales, zero, codes, signs, _ = arrays
    steps, largest = np.empty(8 * LANES, np.int32), np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        largest_scale = search_blocks(x, imatrix, first, S, book, arrays)
        store(largest, 0, largest_scale)
        quantize_scales(scales, 8, largest_scale, 31, 15, steps)
        for lane in range(min(LANES, blocks - first)):
            o = 110 * (first + lane)
            store_half(out, o, largest[lane] / F(31) * F(1.033))
            out[o + 2 : o + 110] = 0
            at = 0  # ggml does not move on past a sub-block of zeros, except in the high bits
            for s in range(8):
                if zero[s * LANES + lane]:
                    continue
                for k in range(8):
                    index = np.int32(point[codes[(8 * s + k) * LANES + lane]])
                    out[o + 2 + 8 * at + k] = index & 255
                    out[o + 66 + s] |= index >> 8 << k
                for k in range(4):
                    out[o + 74 + 4 * at + k] = signs[(4 * s + k) * LANES + lane]
                at += 1
            for s in range(4):
                pair = steps[2 * s * LANES + lane] | steps[(2 * s + 1) * LANES + lane] << 4
                out[o + 106 + s] = pair if largest[lane] != F(0) else 0


@inlined
def _part_iq3_xxs(raw, block, d, k):
    """The word and the scale that group k of a block shares with others."""
    word = load_word(raw, block + 66 + 4 * (k // 4))
    return word, d * (F(0.5) + F(word >> np.uint32(28))) * F(0.5)


@inlined
def _write_iq3_xxs(raw, block, k, word, scale, tables, y, at):
    """Write the eight values of group k to y; returns that levels have no shift. tables: points and signs."""
    sign = 8 * np.intp(even_signs(word >> np.uint32(7 * (k % 4)) & np.uint32(127)))
    for half in range(2):
        values = load(tables[0], 4 * np.intp(raw[block + 2 + 2 * k + half]), 4) * scale
        store(y, at + 4 * half, flip(values, load(tables[1], sign + 4 * half, 4)))
    return F(0)


@inlined
def _part_iq3_s(raw, block, d, k):
    """The byte of high bits and the scale that group k, of four values, shares with others."""
    scale = d * F(1 + 2 * (raw[block + 106 + k // 16] >> (4 * (k // 8 % 2)) & 15))
    return np.intp(raw[block + 66 + k // 8]), scale


@inlined
def _write_iq3_s(raw, block, k, high, scale, tables, y, at):
    point = np.intp(raw[block + 2 + k]) | (high >> k % 8 & 1) << 8
    sign = 8 * np.intp(raw[block + 74 + k // 2]) + 4 * (k % 2)
    store(y, at, flip(load(tables[0], 4 * point, 4) * scale, load(tables[1], sign, 4)))
    return F(0)


def _codec(
    kind: TensorType, dequantize: Callable, quantize: Callable, recode: Callable, limit: float, grid: Grid
) -> Codec:
    def tables():
        return grids.points(kind), grids.signs()

    def halves():
        return grids.levels(kind), grids.halves(kind)

    return codec(
        kind,
        dequantize,
        quantize,
        tables,
        partial(grids.code_book, kind),
        limit=limit,
        grid=grid,
        recode=recode,
        halves=halves,
    )


_XXS = Grid(0.34, 1.49, spacing=8, book=4)
_S = Grid(0.34, 1.09, spacing=2, book=4)
CODECS = {
    kind: _codec(kind, dequantize, quantize, recode, limit, grid)
    for kind, (dequantize, quantize, recode), limit, grid in (
        (TensorType.IQ3_XXS, (_dequantize_iq3_xxs, _quantize_iq3_xxs, _recode_iq3_xxs), 480.5, _XXS),
        (TensorType.IQ3_S, (_dequantize_iq3_s, _quantize_iq3_s, _recode_iq3_s), 465, _S),
    )
}
