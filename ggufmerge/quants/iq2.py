"""IQ2_XXS, IQ2_XS and IQ2_S: groups of eight values are a point of a grid times a scale, signs apart.

Super-blocks of 256 values with a float16 scale `d` and 4-bit scales for each 32 (IQ2_XXS) or 16 values. The grids have
256, 512 and 1024 points; IQ2_XXS and IQ2_XS store the signs of a group in 7 bits (an even number of them is negative).

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggufmerge.quants import grids
from ggufmerge.quants.blocks import load_half
from ggufmerge.quants.codec import Codec
from ggufmerge.types import TensorType

F = np.float32

kernel = njit(nogil=True, cache=True, error_model="numpy")


def dequantize_iq2_xxs(raw, out):
    _dequantize_iq2_xxs(raw, out, grids.points("IQ2_XXS"), grids.signs())


def dequantize_iq2_xs(raw, out):
    _dequantize_iq2_xs(raw, out, grids.points("IQ2_XS"), grids.signs())


def dequantize_iq2_s(raw, out):
    _dequantize_iq2_s(raw, out, grids.points("IQ2_S"), grids.signs())


@kernel
def _dequantize_iq2_xxs(raw, out, points, signs):
    """Block: d, 8 times 4 bytes of grid indices and a little-endian word: 4 times 7 signs, 4 bits of scale."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 66 * b : 66 * b + 66]
            d = load_half(block, 0)
            for s in range(8):
                word = np.uint32(0)
                for i in range(4):
                    word |= np.uint32(block[6 + 8 * s + i]) << np.uint32(8 * i)
                scale = d * (F(0.5) + F(word >> np.uint32(28))) * F(0.25)
                for k in range(4):
                    y = out[r, 256 * b + 32 * s + 8 * k : 256 * b + 32 * s + 8 * k + 8]
                    p = points[block[2 + 8 * s + k]]
                    sign = signs[grids.even_signs(word >> np.uint32(7 * k) & np.uint32(127))]
                    for i in range(8):
                        y[i] = grids.flip(scale * p[i], sign[i])


@kernel
def _dequantize_iq2_xs(raw, out, points, signs):
    """Block: d, 32 little-endian half-words of 9 bits grid index and 7 signs, 8 bytes of scale nibbles."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 74 * b : 74 * b + 74]
            d = load_half(block, 0)
            for k in range(32):
                scale = d * (F(0.5) + F(block[66 + k // 4] >> (4 * (k // 2 % 2)) & 15)) * F(0.25)
                word = np.uint32(block[2 + 2 * k]) | np.uint32(block[3 + 2 * k]) << np.uint32(8)
                y = out[r, 256 * b + 8 * k : 256 * b + 8 * k + 8]
                p, sign = points[word & np.uint32(511)], signs[grids.even_signs(word >> np.uint32(9))]
                for i in range(8):
                    y[i] = grids.flip(scale * p[i], sign[i])


@kernel
def _dequantize_iq2_s(raw, out, points, signs):
    """Block: d, 32 bytes of grid indices, 32 of signs, 8 of the indices' two high bits, 8 of scale nibbles."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 82 * b : 82 * b + 82]
            d = load_half(block, 0)
            for k in range(32):
                scale = d * (F(0.5) + F(block[74 + k // 4] >> (4 * (k // 2 % 2)) & 15)) * F(0.25)
                high = np.int32(block[66 + k // 4]) >> 2 * (k % 4) & 3
                y = out[r, 256 * b + 8 * k : 256 * b + 8 * k + 8]
                p, sign = points[block[2 + k] | high << 8], signs[block[34 + k]]
                for i in range(8):
                    y[i] = grids.flip(scale * p[i], sign[i])


CODECS = {
    TensorType.IQ2_XXS: Codec(TensorType.IQ2_XXS, dequantize_iq2_xxs),
    TensorType.IQ2_XS: Codec(TensorType.IQ2_XS, dequantize_iq2_xs),
    TensorType.IQ2_S: Codec(TensorType.IQ2_S, dequantize_iq2_s),
}
