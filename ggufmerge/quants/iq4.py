"""IQ4_NL and IQ4_XS: 4-bit codes that index 16 unevenly spaced levels.

IQ4_NL has a float16 scale for each 32 values. IQ4_XS has super-blocks of 256: a float16 scale and a 6-bit one for
each 32 values.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggufmerge.quants.codec import Codec
from ggufmerge.quants.half import half_to_float
from ggufmerge.types import TensorType

F = np.float32
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)

kernel = njit(nogil=True, cache=True, error_model="numpy")


@kernel
def dequantize_iq4_nl(raw, out):
    """Block: d, 16 bytes of codes, value i in the low and value i + 16 in the high nibble of byte i."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 32):
            block = raw[r, 18 * b : 18 * b + 18]
            y = out[r, 32 * b : 32 * b + 32]
            d = half_to_float(np.uint16(block[0]) | np.uint16(np.uint16(block[1]) << np.uint16(8)))
            for i in range(16):
                y[i] = d * LEVELS[block[2 + i] & 15]
                y[i + 16] = d * LEVELS[block[2 + i] >> 4]


@kernel
def dequantize_iq4_xs(raw, out):
    """Block: d, 2 bytes of scales' high bits, 4 of their low nibbles, 128 of codes, 16 for each 32 values."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 136 * b : 136 * b + 136]
            d = half_to_float(np.uint16(block[0]) | np.uint16(np.uint16(block[1]) << np.uint16(8)))
            high = np.int32(block[2]) | np.int32(block[3]) << 8
            for s in range(8):
                y = out[r, 256 * b + 32 * s : 256 * b + 32 * s + 32]
                codes = block[8 + 16 * s : 24 + 16 * s]
                scale = np.int32(block[4 + s // 2] >> (4 * (s % 2)) & 15) | (high >> 2 * s & 3) << 4
                dl = d * F(scale - 32)
                for i in range(16):
                    y[i] = dl * LEVELS[codes[i] & 15]
                    y[i + 16] = dl * LEVELS[codes[i] >> 4]


CODECS = {
    TensorType.IQ4_NL: Codec(TensorType.IQ4_NL, dequantize_iq4_nl),
    TensorType.IQ4_XS: Codec(TensorType.IQ4_XS, dequantize_iq4_xs),
}
