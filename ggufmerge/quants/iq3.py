"""IQ3_XXS and IQ3_S: groups of four values are a point of a grid times a scale, signs apart.

Super-blocks of 256 values with a float16 scale `d`; each 32 values have a 4-bit scale. IQ3_XXS has 256 grid points and
stores the signs of 8 values in 7 bits (an even number of them is negative); IQ3_S has 512 points and all the signs.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggufmerge.quants import grids
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.half import half_to_float
from ggufmerge.types import TensorType

F = np.float32

kernel = njit(nogil=True, cache=True, error_model="numpy")


def dequantize_iq3_xxs(raw, out):
    _dequantize_iq3_xxs(raw, out, grids.points("IQ3_XXS"), grids.signs())


def dequantize_iq3_s(raw, out):
    _dequantize_iq3_s(raw, out, grids.points("IQ3_S"), grids.signs())


@kernel
def _dequantize_iq3_xxs(raw, out, points, signs):
    """Block: d, 64 bytes of grid indices, 8 little-endian words: 4 times 7 signs, 4 bits of scale."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 98 * b : 98 * b + 98]
            d = half_to_float(np.uint16(block[0]) | np.uint16(np.uint16(block[1]) << np.uint16(8)))
            for s in range(8):
                word = np.uint32(0)
                for i in range(4):
                    word |= np.uint32(block[66 + 4 * s + i]) << np.uint32(8 * i)
                scale = d * (F(0.5) + F(word >> np.uint32(28))) * F(0.5)
                for k in range(4):
                    y = out[r, 256 * b + 32 * s + 8 * k : 256 * b + 32 * s + 8 * k + 8]
                    sign = signs[grids.even_signs(word >> np.uint32(7 * k) & np.uint32(127))]
                    p, q = points[block[2 + 8 * s + 2 * k]], points[block[3 + 8 * s + 2 * k]]
                    for i in range(4):
                        y[i] = grids.flip(scale * p[i], sign[i])
                    for i in range(4):
                        y[4 + i] = grids.flip(scale * q[i], sign[4 + i])


@kernel
def _dequantize_iq3_s(raw, out, points, signs):
    """Block: d, 64 bytes of grid indices, 8 of their ninth bits, 32 of signs, 4 of scale nibbles."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 110 * b : 110 * b + 110]
            d = half_to_float(np.uint16(block[0]) | np.uint16(np.uint16(block[1]) << np.uint16(8)))
            for s in range(8):
                scale = d * F(1 + 2 * (block[106 + s // 2] >> (4 * (s % 2)) & 15))
                high = np.int32(block[66 + s])
                for k in range(4):
                    y = out[r, 256 * b + 32 * s + 8 * k : 256 * b + 32 * s + 8 * k + 8]
                    sign = signs[block[74 + 4 * s + k]]
                    p = points[block[2 + 8 * s + 2 * k] | (high >> 2 * k & 1) << 8]
                    q = points[block[3 + 8 * s + 2 * k] | (high >> 2 * k + 1 & 1) << 8]
                    for i in range(4):
                        y[i] = grids.flip(scale * p[i], sign[i])
                    for i in range(4):
                        y[4 + i] = grids.flip(scale * q[i], sign[4 + i])


CODECS = {
    TensorType.IQ3_XXS: Codec(TensorType.IQ3_XXS, dequantize_iq3_xxs),
    TensorType.IQ3_S: Codec(TensorType.IQ3_S, dequantize_iq3_s),
}
