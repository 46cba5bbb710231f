"""IQ2_XXS, IQ2_XS and IQ2_S: groups of eight values are a point of a grid times a scale, signs apart.

Super-blocks of 256 values with a float16 scale `d` and 4-bit scales for each 32 (IQ2_XXS) or 16 values. The grids have
256, 512 and 1024 points; IQ2_XXS and IQ2_XS store the signs of a group in 7 bits (an even number of them is negative).

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
    ALL,
    LANES,
    OFF_GRID,
    Search,
    codec,
    quantize_scales,
    search_arrays,
    search_blocks,
)
from ggufmerge.quants.nearest_points import Groups, load_8, recode_blocks
from ggufmerge.quants.simd import load, store
from ggufmerge.types import TensorType

F = np.float32

XXS = Search(32, 8, 2, 3, 6, F(0.1), ALL, True, F(1), F(0), F(1e-15))
XS = Search(16, 8, 2, 3, 9, F(0.1), OFF_GRID, True, F(1), F(0), F(1e-15))
S = Search(16, 8, 2, 3, 9, F(0.1), OFF_GRID, False, F(2), F(0.25), F(1e-8))

EVEN, FREE = Groups(8, 1, True, F(0), False), Groups(8, 1, False, F(0), False)


@kernel
def _dequantize_iq2_xxs(raw, out, points, signs):
    """Block: d, 8 times 4 bytes of grid indices and a little-endian word: 4 times 7 signs, 4 bits of scale."""
    raw, y, points, signs = raw.ravel(), out.ravel(), points.ravel(), signs.ravel()
    for b in range(y.size // 256):
        block = 66 * b
        d = load_half(raw, block)
        for s in range(8):
            word, scale = _part_iq2_xxs(raw, block, d, 4 * s)
            for k in range(4 * s, 4 * s + 4):
                _write_iq2_xxs(raw, block, k, word, scale, (points, signs), y, 256 * b + 8 * k)


@kernel
def _dequantize_iq2_xs(raw, out, points, signs):
    """Block: d, 32 little-endian half-words of 9 bits grid index and 7 signs, 8 bytes of scale nibbles."""
    raw, y, points, signs = raw.ravel(), out.ravel(), points.ravel(), signs.ravel()
    for b in range(y.size // 256):
        block = 74 * b
        d = load_half(raw, block)
        for k in range(32):
            bits, scale = _part_iq2_xs(raw, block, d, k)
            _write_iq2_xs(raw, block, k, bits, scale, (points, signs), y, 256 * b + 8 * k)


@kernel
def _dequantize_iq2_s(raw, out, points, signs):
    """Block: d, 32 bytes of grid indices, 32 of signs, 8 of the indices' two high bits, 8 of scale nibbles."""
    raw, y, points, signs = raw.ravel(), out.ravel(), points.ravel(), signs.ravel()
    for b in range(y.size // 256):
        block = 82 * b
        d = load_half(raw, block)
        for k in range(32):
            bits, scale = _part_iq2_s(raw, block, d, k)
            _write_iq2_s(raw, block, k, bits, scale, (points, signs), y, 256 * b + 8 * k)


@kernel
def _recode_iq2_xxs(raw, x, out, points, signs, levels, halves):
    raw, x, out, points, signs = raw.ravel(), x.ravel(), out.ravel(), points.ravel(), signs.ravel()
    book = points, levels, halves
    recode_blocks(
        raw, x, out, book, EVEN, load_8, 66, load_half, _part_iq2_xxs, _write_iq2_xxs, (points, signs), _store_iq2_xxs
    )


@inlined
def _store_iq2_xxs(out, group, point, signs, found):
    k = group % 32
    at = 66 * (group // 32) + 2 + 8 * (k // 4)
    place = np.uint32(7 * (k % 4))
    word = load_word(out, at + 4) & ~(np.uint32(127) << place)
    out[at + k % 4] = point[0]
    store_word(out, at + 4, word | np.uint32(signs & 127) << place)


@kernel
def _recode_iq2_xs(raw, x, out, points, signs, levels, halves):
    raw, x, out, points, signs = raw.ravel(), x.ravel(), out.ravel(), points.ravel(), signs.ravel()
    book = points, levels, halves
    recode_blocks(
        raw, x, out, book, EVEN, load_8, 74, load_half, _part_iq2_xs, _write_iq2_xs, (points, signs), _store_iq2_xs
    )


@inlined
def _store_iq2_xs(out, group, point, signs, found):
    at = 74 * (group // 32) + 2 + 2 * (group % 32)
    word = point[0] | (signs & 127) << 9
    out[at] = word & 255
    out[at + 1] = word >> 8


@kernel
def _recode_iq2_s(raw, x, out, points, signs, levels, halves):
    raw, x, out, points, signs = raw.ravel(), x.ravel(), out.ravel(), points.ravel(), signs.ravel()
    book = points, levels, halves
    recode_blocks(
        raw, x, out, book, FREE, load_8, 82, load_half, _part_iq2_s, _write_iq2_s, (points, signs), _store_iq2_s
    )


@inlined
def _store_iq2_s(out, group, point, signs, found):
    block, k = 82 * (group // 32), group % 32
    place, index = 2 * (k % 4), point[0]
    out[block + 2 + k] = index & 255
    out[block + 34 + k] = signs
    out[block + 66 + k // 4] = out[block + 66 + k // 4] & ~(3 << place) | index >> 8 << place


@kernel
def _quantize_iq2_xxs(x, out, imatrix, point, span, neighbours):
    """x: float32 [blocks * 256], out: uint8 [blocks * 66], imatrix: float32 [n of a row]."""
    blocks, book, arrays = x.size // 256, (span, neighbours), search_arrays()
    scales, _, codes, signs, _ = arrays
    steps, largest = np.empty(8 * LANES, np.int32), np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        largest_scale = search_blocks(x, imatrix, first, XXS, book, arrays)
        store(largest, 0, largest_scale)
        quantize_scales(scales, 8, largest_scale, 31, 15, steps)
        for lane in range(min(LANES, blocks - first)):
            o = 66 * (first + lane)
            if largest[lane] == F(0):
                out[o : o + 66] = 0
                continue
            store_half(out, o, largest[lane] / F(31))
            for s in range(8):
                word = np.uint32(steps[s * LANES + lane]) << np.uint32(28)
                for k in range(4):
                    out[o + 2 + 8 * s + k] = point[codes[(4 * s + k) * LANES + lane]]
                    word |= np.uint32(signs[(4 * s + k) * LANES + lane]) << np.uint32(7 * k)
                for i in range(4):
                    out[o + 6 + 8 * s + i] = word >> np.uint32(8 * i) & np.uint32(255)


@kernel
def _quantize_iq2_xs(x, out, imatrix, point, span, neighbours):
    """x: float32 [blocks * 256], out: uint8 [blocks * 74], imatrix: float32 [n of a row]."""
    blocks, book, arrays = x.size // 256, (span, neighbours), search_arrays()
    scales, _, codes, signs, _ = arrays
    steps, largest = np.empty(16 * LANES, np.int32), np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        largest_scale = search_blocks(x, imatrix, first, XS, book, arrays)
        store(largest, 0, largest_scale)
        quantize_scales(scales, 16, largest_scale, 31, 15, steps)
        for lane in range(min(LANES, blocks - first)):
            o = 74 * (first + lane)
            if largest[lane] == F(0):
                out[o : o + 74] = 0
                continue
            store_half(out, o, largest[lane] / F(31))
            for k in range(32):
                word = np.int32(point[codes[k * LANES + lane]]) | signs[k * LANES + lane] << 9
                out[o + 2 + 2 * k] = word & 255
                out[o + 3 + 2 * k] = word >> 8
            for s in range(8):
                out[o + 66 + s] = steps[2 * s * LANES + lane] | steps[(2 * s + 1) * LANES + lane] << 4


@kernel
def _quantize_iq2_s(x, out, imatrix, point, span, neighbours):
    """x: float32 [blocks * 256], out: uint8 [blocks * 82], imatrix: float32 [n of a row], empty for none."""
    blocks, book, arrays = x.size // 256, (span, neighbours), search_arrays()
    scales, _, codes, signs, _ = arrays
    steps, largest = np.empty(16 * LANES, np.int32), np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        largest_scale = search_blocks(x, imatrix, first, S, book, arrays)
        store(largest, 0, largest_scale)
        quantize_scales(scales, 16, largest_scale, 31, 15, steps)
        for lane in range(min(LANES, blocks - first)):
            o = 82 * (first + lane)
            store_half(out, o, largest[lane] / F(31) * F(0.9875))
            out[o + 66 : o + 74] = 0
            for k in range(32):
                index = np.int32(point[codes[k * LANES + lane]])
                out[o + 2 + k] = index & 255
                out[o + 34 + k] = signs[k * LANES + lane]
                out[o + 66 + k // 4] |= index >> 8 << 2 * (k % 4)
            for s in range(8):
                pair = steps[2 * s * LANES + lane] | steps[(2 * s + 1) * LANES + lane] << 4
                out[o + 74 + s] = pair if largest[lane] != F(0) else 0


@inlined
def _part_iq2_xxs(raw, block, d, k):
    """The word and the scale that group k of a block shares with others."""
    word = load_word(raw, block + 6 + 8 * (k // 4))
    return word, d * (F(0.5) + F(word >> np.uint32(28))) * F(0.25)


@inlined
def _write_iq2_xxs(raw, block, k, word, scale, tables, y, at):
    """Write the eight values of group k to y; returns that levels have no shift. tables: points and signs."""
    sign = even_signs(word >> np.uint32(7 * (k % 4)) & np.uint32(127))
    values = load(tables[0], 8 * np.intp(raw[block + 2 + 8 * (k // 4) + k % 4]), 8) * scale
    store(y, at, flip(values, load(tables[1], 8 * np.intp(sign), 8)))
    return F(0)


@inlined
def _part_iq2_xs(raw, block, d, k):
    bits = raw[block + 66 + k // 4] >> (4 * (k // 2 % 2)) & 15
    return bits, d * (F(0.5) + F(bits)) * F(0.25)


@inlined
def _write_iq2_xs(raw, block, k, bits, scale, tables, y, at):
    word = np.uint32(raw[block + 2 + 2 * k]) | np.uint32(raw[block + 3 + 2 * k]) << np.uint32(8)
    values = load(tables[0], 8 * np.intp(word & np.uint32(511)), 8) * scale
    store(y, at, flip(values, load(tables[1], 8 * np.intp(even_signs(word >> np.uint32(9))), 8)))
    return F(0)


@inlined
def _part_iq2_s(raw, block, d, k):
    bits = raw[block + 74 + k // 4] >> (4 * (k // 2 % 2)) & 15
    return bits, d * (F(0.5) + F(bits)) * F(0.25)


@inlined
def _write_iq2_s(raw, block, k, bits, scale, tables, y, at):
    high = np.intp(raw[block + 66 + k // 4]) >> 2 * (k % 4) & 3
    values = load(tables[0], 8 * (np.intp(raw[block + 2 + k]) | high << 8), 8) * scale
    store(y, at, flip(values, load(tables[1], 8 * np.intp(raw[block + 34 + k]), 8)))
    return F(0)


def _codec(
    kind: TensorType,
    dequantize: Callable,
    quantize: Callable,
    recode: Callable,
    typical_step: float,
    gain: float,
    needs_imatrix: bool,
) -> Codec:
    def tables():
        return grids.points(kind), grids.signs()

    def halves():
        return grids.levels(kind), grids.halves(kind)

    book = partial(grids.code_book, kind)
    # levels of 8, 25 and 43, of either sign
    grid = Grid(typical_step, gain, spacing=17, book=8)
    kernels = (dequantize, quantize, tables, book)
    return codec(kind, *kernels, needs_imatrix, limit=166.625, grid=grid, recode=recode, halves=halves)


CODECS = {
    kind: _codec(kind, dequantize, quantize, recode, typical_step, gain, needs_imatrix)
    for kind, (dequantize, quantize, recode), (typical_step, gain), needs_imatrix in (
        (TensorType.IQ2_XXS, (_dequantize_iq2_xxs, _quantize_iq2_xxs, _recode_iq2_xxs), (0.85, 1.39), True),
        (TensorType.IQ2_XS, (_dequantize_iq2_xs, _quantize_iq2_xs, _recode_iq2_xs), (0.86, 1.27), True),
        (TensorType.IQ2_S, (_dequantize_iq2_s, _quantize_iq2_s, _recode_iq2_s), (0.87, 1.19), False),
    )
}
