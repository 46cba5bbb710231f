"""IQ1_S and IQ1_M: groups of eight values are one of 2048 points of {-1, 0, 1}, shifted by 1/8 up or down.

Super-blocks of 256 values with a float16 scale `d`. IQ1_S has a 3-bit scale and one shift for each 32 values, IQ1_M a
3-bit scale for each 16 and a shift for each 8; IQ1_M scatters the bits of `d` over its scales.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggufmerge.quants import grids
from ggufmerge.quants.blocks import load_half
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.half import half_to_float
from ggufmerge.types import TensorType

F = np.float32
SHIFT = F(0.125)

kernel = njit(nogil=True, cache=True, error_model="numpy")


def dequantize_iq1_s(raw, out):
    _dequantize_iq1_s(raw, out, grids.points("IQ1_S"))


def dequantize_iq1_m(raw, out):
    _dequantize_iq1_m(raw, out, grids.points("IQ1_S"))


@kernel
def _dequantize_iq1_s(raw, out, points):
    """Block: d, 32 bytes of grid indices, 8 little-endian half-words: 4 times 3 high index bits, 3 bits of scale, sign
    of the shift.
    """
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 50 * b : 50 * b + 50]
            d = load_half(block, 0)
            for s in range(8):
                high = np.int32(block[34 + 2 * s]) | np.int32(block[35 + 2 * s]) << 8
                scale = d * F(2 * (high >> 12 & 7) + 1)
                shift = -SHIFT if high & 0x8000 else SHIFT
                for k in range(4):
                    y = out[r, 256 * b + 32 * s + 8 * k : 256 * b + 32 * s + 8 * k + 8]
                    p = points[block[2 + 4 * s + k] | (high >> 3 * k & 7) << 8]
                    for i in range(8):
                        y[i] = scale * (p[i] + shift)


@kernel
def _dequantize_iq1_m(raw, out, points):
    """Block: 32 bytes of grid indices, 16 of nibbles (3 high index bits, sign of shift), 4 little-endian half-words:
    4 times 3 bits of scale and 4 bits of d.
    """
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 56 * b : 56 * b + 56]
            bits = np.uint16(0)
            for i in range(4):
                bits |= np.uint16(np.uint16(block[49 + 2 * i] >> 4) << np.uint16(4 * i))
            d = half_to_float(bits)
            for s in range(16):
                scales = np.int32(block[48 + s // 4 * 2]) | np.int32(block[49 + s // 4 * 2]) << 8
                scale = d * F(2 * (scales >> 3 * (s % 4) & 7) + 1)
                for k in range(2):
                    high = np.int32(block[32 + s]) >> 4 * k
                    shift = -SHIFT if high & 8 else SHIFT
                    y = out[r, 256 * b + 16 * s + 8 * k : 256 * b + 16 * s + 8 * k + 8]
                    p = points[block[2 * s + k] | (high & 7) << 8]
                    for i in range(8):
                        y[i] = scale * (p[i] + shift)


CODECS = {
    TensorType.IQ1_S: Codec(TensorType.IQ1_S, dequantize_iq1_s),
    TensorType.IQ1_M: Codec(TensorType.IQ1_M, dequantize_iq1_m),
}
