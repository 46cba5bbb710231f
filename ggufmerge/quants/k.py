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
    """Block: 16 bytes of scale (low) and minimum (high) nibbles, 64 of 2-bit codes, d, dmin."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 84 : b * 84 + 84]
            d, dmin = _half_at(block, 80), _half_at(block, 82)
            for h in range(2):
                for t in range(2):
                    s = 8 * h + t
                    d0, m0 = d * F(block[s] & 15), dmin * F(block[s] >> 4)
                    d1, m1 = d * F(block[s + 2] & 15), dmin * F(block[s + 2] >> 4)
                    d2, m2 = d * F(block[s + 4] & 15), dmin * F(block[s + 4] >> 4)
                    d3, m3 = d * F(block[s + 6] & 15), dmin * F(block[s + 6] >> 4)
                    codes = block[16 + 32 * h + 16 * t :]
                    y = out[r, b * SUPER + 16 * s :]
                    for i in range(16):
                        q = codes[i]
                        y[i] = d0 * F(q & 3) - m0
                        y[i + 32] = d1 * F((q >> 2) & 3) - m1
                        y[i + 64] = d2 * F((q >> 4) & 3) - m2
                        y[i + 96] = d3 * F(q >> 6) - m3


@kernel
def dequantize_q3_k(raw, out):
    """Block: 32 bytes of high bits, 64 of low 2-bit codes, 12 of 6-bit scales, d."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 110 : b * 110 + 110]
            d, packed = _half_at(block, 108), block[96:108]
            for h in range(2):
                for t in range(2):
                    s = 8 * h + t
                    d0, d1 = d * F(_scale_3bit(packed, s)), d * F(_scale_3bit(packed, s + 2))
                    d2, d3 = d * F(_scale_3bit(packed, s + 4)), d * F(_scale_3bit(packed, s + 6))
                    high, codes = block[16 * t :], block[32 + 32 * h + 16 * t :]
                    y = out[r, b * SUPER + 16 * s :]
                    for i in range(16):
                        q, top = np.int32(codes[i]), np.int32(high[i]) >> (4 * h)
                        y[i] = d0 * F((q & 3 | (top & 1) << 2) - 4)
                        y[i + 32] = d1 * F((q >> 2 & 3 | (top & 2) << 1) - 4)
                        y[i + 64] = d2 * F((q >> 4 & 3 | top & 4) - 4)
                        y[i + 96] = d3 * F((q >> 6 | (top & 8) >> 1) - 4)


@kernel
def dequantize_q4_k(raw, out):
    """Block: d, dmin, 12 bytes of 6-bit scales and minima, 128 of 4-bit codes."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 144 : b * 144 + 144]
            d, dmin = _half_at(block, 0), _half_at(block, 2)
            for pair in range(4):
                d0, m0 = _scale_and_minimum(d, dmin, block[4:16], 2 * pair)
                d1, m1 = _scale_and_minimum(d, dmin, block[4:16], 2 * pair + 1)
                codes = block[16 + 32 * pair :]
                y = out[r, b * SUPER + 64 * pair :]
                for i in range(32):
                    y[i] = d0 * F(codes[i] & 15) - m0
                    y[i + 32] = d1 * F(codes[i] >> 4) - m1


@kernel
def dequantize_q5_k(raw, out):
    """Block: d, dmin, 12 bytes of 6-bit scales and minima, 32 of high bits, 128 of low 4-bit codes."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 176 : b * 176 + 176]
            d, dmin, high = _half_at(block, 0), _half_at(block, 2), block[16:48]
            for pair in range(4):
                d0, m0 = _scale_and_minimum(d, dmin, block[4:16], 2 * pair)
                d1, m1 = _scale_and_minimum(d, dmin, block[4:16], 2 * pair + 1)
                codes = block[48 + 32 * pair :]
                y = out[r, b * SUPER + 64 * pair :]
                for i in range(32):
                    q, top = np.int32(codes[i]), np.int32(high[i]) >> (2 * pair)
                    y[i] = d0 * F(q & 15 | (top & 1) << 4) - m0
                    y[i + 32] = d1 * F(q >> 4 | (top & 2) << 3) - m1


@kernel
def dequantize_q6_k(raw, out):
    """Block: 128 bytes of low 4-bit codes, 64 of high 2-bit codes, 16 int8 scales, d."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // SUPER):
            block = raw[r, b * 210 : b * 210 + 210]
            d, scales = _half_at(block, 208), block[192:208].view(np.int8)
            for h in range(2):
                for t in range(2):
                    s = 8 * h + t
                    d0, d1, d2, d3 = d * F(scales[s]), d * F(scales[s + 2]), d * F(scales[s + 4]), d * F(scales[s + 6])
                    low, high = block[64 * h + 16 * t :], block[128 + 32 * h + 16 * t :]
                    y = out[r, b * SUPER + 16 * s :]
                    for i in range(16):
                        q, p, top = np.int32(low[i]), np.int32(low[i + 32]), np.int32(high[i])
                        y[i] = d0 * F((q & 15 | (top & 3) << 4) - 32)
                        y[i + 32] = d1 * F((p & 15 | (top & 12) << 2) - 32)
                        y[i + 64] = d2 * F((q >> 4 | top & 48) - 32)
                        y[i + 96] = d3 * F((p >> 4 | (top & 192) >> 2) - 32)


@inline
def _half_at(block, offset):
    """The little-endian float16 at a byte offset, as float32."""
    return half_to_float(np.uint16(block[offset]) | (np.uint16(block[offset + 1]) << np.uint16(8)))


@inline
def _scale_and_minimum(d, dmin, packed, s):
    """Scale and minimum of sub-block s (0..7) of Q4_K and Q5_K, whose 12 bytes hold 6-bit multiples of d and dmin."""
    if s < 4:
        scale, minimum = packed[s] & 63, packed[s + 4] & 63
    else:
        scale = packed[s + 4] & 15 | packed[s - 4] >> 6 << 4
        minimum = packed[s + 4] >> 4 | packed[s] >> 6 << 4
    return d * F(scale), dmin * F(minimum)


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
