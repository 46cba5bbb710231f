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
from ggufmerge.quants.blocks import load_half, load_word, store_half
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.grids import even_signs, flip
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
from ggufmerge.quants.simd import load, store
from ggufmerge.types import TensorType

F = np.float32

XXS = Search(32, 8, 2, 3, 6, F(0.1), ALL, True, F(1), F(0), F(1e-15))
XS = Search(16, 8, 2, 3, 9, F(0.1), OFF_GRID, True, F(1), F(0), F(1e-15))
S = Search(16, 8, 2, 3, 9, F(0.1), OFF_GRID, False, F(2), F(0.25), F(1e-8))


@kernel
def _dequantize_iq2_xxs(raw, out, points, signs):
    """Block: d, 8 times 4 bytes of grid indices and a little-endian word: 4 times 7 signs, 4 bits of scale."""
    raw, y, points, signs = raw.ravel(), out.ravel(), points.ravel(), signs.ravel()
    for b in range(y.size // 256):
        block = 66 * b
        d = load_half(raw, block)
        for s in range(8):
            at = block + 2 + 8 * s
            word = load_word(raw, at + 4)
            scale = d * (F(0.5) + F(word >> np.uint32(28))) * F(0.25)
            for k in range(4):
                sign = even_signs(word >> np.uint32(7 * k) & np.uint32(127))
                values = load(points, 8 * np.intp(raw[at + k]), 8) * scale
                store(y, 256 * b + 32 * s + 8 * k, flip(values, load(signs, 8 * np.intp(sign), 8)))


@kernel
def _dequantize_iq2_xs(raw, out, points, signs):
    """Block: d, 32 little-endian half-words of 9 bits grid index and 7 signs, 8 bytes of scale nibbles."""
    raw, y, points, signs = raw.ravel(), out.ravel(), points.ravel(), signs.ravel()
    for b in range(y.size // 256):
        block = 74 * b
        d = load_half(raw, block)
        for k in range(32):
            scale = d * (F(0.5) + F(raw[block + 66 + k // 4] >> (4 * (k // 2 % 2)) & 15)) * F(0.25)
            word = np.uint32(raw[block + 2 + 2 * k]) | np.uint32(raw[block + 3 + 2 * k]) << np.uint32(8)
            values = load(points, 8 * np.intp(word & np.uint32(511)), 8) * scale
            sign = even_signs(word >> np.uint32(9))
            store(y, 256 * b + 8 * k, flip(values, load(signs, 8 * np.intp(sign), 8)))


@kernel
def _dequantize_iq2_s(raw, out, points, signs):
    """Block: d, 32 bytes of grid indices, 32 of signs, 8 of the indices' two high bits, 8 of scale nibbles."""
    raw, y, points, signs = raw.ravel(), out.ravel(), points.ravel(), signs.ravel()
    for b in range(y.size // 256):
        block = 82 * b
        d = load_half(raw, block)
        for k in range(32):
            scale = d * (F(0.5) + F(raw[block + 74 + k // 4] >> (4 * (k // 2 % 2)) & 15)) * F(0.25)
            high = np.intp(raw[block + 66 + k // 4]) >> 2 * (k % 4) & 3
            values = load(points, 8 * (np.intp(raw[block + 2 + k]) | high << 8), 8) * scale
            store(y, 256 * b + 8 * k, flip(values, load(signs, 8 * np.intp(raw[block + 34 + k]), 8)))


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


def _codec(
    kind: TensorType, dequantize: Callable, quantize: Callable, limit: float, needs_imatrix: bool = False
) -> Codec:
    def tables():
        return grids.points(kind), grids.signs()

    return codec(kind, dequantize, quantize, tables, partial(grids.code_book, kind), needs_imatrix, limit=limit)


CODECS = {
    TensorType.IQ2_XXS: _codec(TensorType.IQ2_XXS, _dequantize_iq2_xxs, _quantize_iq2_xxs, 166.625, needs_imatrix=True),
    TensorType.IQ2_XS: _codec(TensorType.IQ2_XS, _dequantize_iq2_xs, _quantize_iq2_xs, 166.625, needs_imatrix=True),
    TensorType.IQ2_S: _codec(TensorType.IQ2_S, _dequantize_iq2_s, _quantize_iq2_s, 166.625),
}
