"""K-quants: Q2_K, Q3_K, Q4_K, Q5_K and Q6_K, super-blocks of 256 values in sub-blocks of 16 or 32.

A sub-block has its own scale (and in Q2_K, Q4_K, Q5_K its own minimum), stored as a small integer multiple of the
super-block's float16 scale `d` (and `dmin`). A value is `d * scale * code` or `d * scale * code - dmin * minimum`.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggufmerge.quants.codec import Codec
from ggufmerge.quants.half import half_to_float
from ggufmerge.types import TensorType

F = np.float32
SUPER = 256  # values of a super-block

kernel = njit(nogil=True, cache=True, error_model="numpy")
inline = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


@kernel
def dequantize_q2_k(raw, out):
    """Block: 16 bytes of scale and minimum nibbles, 64 of 2-bit codes, d, dmin."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 84 : b * 84 + 84]
            y = out[r, b * SUPER : (b + 1) * SUPER]
            d, dmin = _half_at(block, 80), _half_at(block, 82)
            for s in range(16):
                scale, minimum = d * F(block[s] & 15), dmin * F(block[s] >> 4)
                codes = block[16 + 32 * (s // 8) + 16 * (s % 2) :]
                shift = 2 * (s % 8 // 2)
                for i in range(16):
                    y[16 * s + i] = scale * F((codes[i] >> shift) & 3) - minimum


@kernel
def dequantize_q3_k(raw, out):
    """Block: 32 bytes of high bits, 64 of low 2-bit codes, 12 of 6-bit scales, d."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 110 : b * 110 + 110]
            y = out[r, b * SUPER : (b + 1) * SUPER]
            d = _half_at(block, 108)
            for s in range(16):
                scale = d * F(_scale_3bit(block[96:108], s))
                high = block[16 * (s % 2) :]
                codes = block[32 + 32 * (s // 8) + 16 * (s % 2) :]
                shift = 2 * (s % 8 // 2)
                for i in range(16):
                    code = ((codes[i] >> shift) & 3) + (((high[i] >> (s // 2)) & 1) << 2)
                    y[16 * s + i] = scale * F(np.int32(code) - 4)


@kernel
def dequantize_q4_k(raw, out):
    """Block: d, dmin, 12 bytes of 6-bit scales and minima, 128 of 4-bit codes."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 144 : b * 144 + 144]
            y = out[r, b * SUPER : (b + 1) * SUPER]
            d, dmin = _half_at(block, 0), _half_at(block, 2)
            for pair in range(4):
                level, low = _scale_and_minimum(block[4:16], 2 * pair)
                scale, minimum = d * F(level), dmin * F(low)
                level, low = _scale_and_minimum(block[4:16], 2 * pair + 1)
                scale2, minimum2 = d * F(level), dmin * F(low)
                codes = block[16 + 32 * pair : 48 + 32 * pair]
                for i in range(32):
                    y[64 * pair + i] = scale * F(codes[i] & 15) - minimum
                for i in range(32):
                    y[64 * pair + 32 + i] = scale2 * F(codes[i] >> 4) - minimum2


@kernel
def dequantize_q5_k(raw, out):
    """Block: d, dmin, 12 bytes of 6-bit scales and minima, 32 of high bits, 128 of low 4-bit codes."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 176 : b * 176 + 176]
            y = out[r, b * SUPER : (b + 1) * SUPER]
            d, dmin = _half_at(block, 0), _half_at(block, 2)
            for s in range(8):
                level, low = _scale_and_minimum(block[4:16], s)
                scale, minimum = d * F(level), dmin * F(low)
                high = block[16:48]
                codes = block[48 + 32 * (s // 2) :]
                shift = 4 * (s % 2)
                for i in range(32):
                    code = ((codes[i] >> shift) & 15) + (((high[i] >> s) & 1) << 4)
                    y[32 * s + i] = scale * F(code) - minimum


@kernel
def dequantize_q6_k(raw, out):
    """Block: 128 bytes of low 4-bit codes, 64 of high 2-bit codes, 16 int8 scales, d."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 210 : b * 210 + 210]
            y = out[r, b * SUPER : (b + 1) * SUPER]
            d = _half_at(block, 208)
            for s in range(16):
                scale = d * F(np.int8(block[192 + s]))
                half, quarter = s // 8, s % 8 // 2
                low = block[64 * half + 32 * (quarter % 2) + 16 * (s % 2) :]
                high = block[128 + 32 * half + 16 * (s % 2) :]
                low_shift, high_shift = 4 * (quarter // 2), 2 * quarter
                for i in range(16):
                    code = ((low[i] >> low_shift) & 15) + (((high[i] >> high_shift) & 3) << 4)
                    y[16 * s + i] = scale * F(np.int32(code) - 32)


@inline
def _half_at(block, offset):
    """The little-endian float16 at a byte offset, as float32."""
    return half_to_float(np.uint16(block[offset]) | (np.uint16(block[offset + 1]) << np.uint16(8)))


@inline
def _scale_and_minimum(packed, s):
    """6-bit scale and minimum of sub-block s (0..7) from the 12 bytes of Q4_K and Q5_K."""
    if s < 4:
        return packed[s] & 63, packed[s + 4] & 63
    low, high = packed[s + 4], packed[s - 4] >> 6
    return (low & 15) | (high << 4), (low >> 4) | ((packed[s] >> 6) << 4)


@inline
def _scale_3bit(packed, s):
    """Signed 6-bit scale of sub-block s (0..15) from the 12 bytes of Q3_K."""
    low = (packed[s % 8] >> (4 * (s // 8))) & 15
    high = (packed[8 + s % 4] >> (2 * (s // 4))) & 3
    return np.int32(low | (high << 4)) - 32


CODECS: dict[TensorType, Codec] = {
    TensorType.Q2_K: Codec(TensorType.Q2_K, dequantize_q2_k),
    TensorType.Q3_K: Codec(TensorType.Q3_K, dequantize_q3_k),
    TensorType.Q4_K: Codec(TensorType.Q4_K, dequantize_q4_k),
    TensorType.Q5_K: Codec(TensorType.Q5_K, dequantize_q5_k),
    TensorType.Q6_K: Codec(TensorType.Q6_K, dequantize_q6_k),
}
