"""K-quants: Q2_K, Q3_K, Q4_K, Q5_K and Q6_K, super-blocks of 256 values in sub-blocks of 16 or 32.

A sub-block has its own scale (and in Q2_K, Q4_K, Q5_K its own minimum), stored as a small integer multiple of the
super-block's float16 scale `d` (and `dmin`). A value is `d * scale * code` or `d * scale * code - dmin * minimum`.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ggufmerge.quants import lanes
from ggufmerge.quants.codec import Codec, Rows
from ggufmerge.quants.half import float_to_half, half_to_float
from ggufmerge.quants.lanes import LANES, inline
from ggufmerge.types import TensorType

F = np.float32
SUPER = 256  # values of a super-block

kernel = njit(nogil=True, cache=True, error_model="numpy")


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


@kernel
def quantize_q2_k(x, out, imatrix=None):
    """Affine sub-blocks of 16; scales and minima are 4-bit multiples of d and dmin."""
    blocks, packed = x.reshape(-1, SUPER), out.reshape(-1, 84)
    g = _affine_group(16)
    codes = np.empty(SUPER, np.uint8)
    for first in range(0, blocks.shape[0], LANES):
        lanes.load(blocks, first, g.x)
        if imatrix is None:
            for s in range(16):
                v = g.x[16 * s : 16 * s + 16]
                for i in range(16):
                    for j in range(LANES):
                        g.w[i, j] = abs(v[i, j])
                _search_affine(g, s, v, F(3), F(-0.5), F(0.1), 15, True)
            _levels_of_largest(g.scale, F(15), F(255), g.level, g.d)
            _levels_of_largest(g.minimum, F(15), F(255), g.low, g.dmin)
        else:
            _fit_affine_weighted(g, first, imatrix, 16, F(3), F(1), F(15))
        for j in range(min(LANES, blocks.shape[0] - first)):
            v, block = blocks[first + j], packed[first + j]
            d, dmin = _put_half(g.d[j], block, 80), _put_half(g.dmin[j], block, 82)
            for s in range(16):
                block[s] = np.uint8(g.level[s, j]) | np.uint8(g.low[s, j]) << 4
                scale, minimum = d * F(block[s] & 15), dmin * F(block[s] >> 4)
                _affine_codes(g, s, j, v[16 * s : 16 * s + 16], scale, minimum, F(3), codes[16 * s :])
            _pack_2bit(codes, block[16:80])


@kernel
def quantize_q3_k(x, out, imatrix=None):
    """Symmetric sub-blocks of 16; scales are 6-bit multiples of d."""
    blocks, packed = x.reshape(-1, SUPER), out.reshape(-1, 110)
    g = _symmetric_group()
    fitted = np.empty((SUPER, LANES), F)
    codes = np.empty(SUPER, np.uint8)
    for first in range(0, blocks.shape[0], LANES):
        lanes.load(blocks, first, g.x)
        if imatrix is None:
            for s in range(16):
                rows = slice(16 * s, 16 * s + 16)
                lanes.descend_symmetric(g.x[rows], F(4), g.tmp, fitted[rows], g.scale[s])
            _signed_levels_of_largest(g)
        else:
            _fit_symmetric_weighted(g, first, imatrix)
        for j in range(min(LANES, blocks.shape[0] - first)):
            v, block = blocks[first + j], packed[first + j]
            d = _put_half(g.d[j], block, 108)
            _pack_scales_3bit(g.level[:, j], block[96:108])
            for s in range(16):
                scale = d * F(np.int32(g.level[s, j]) - 32)
                if imatrix is None and scale == F(0):
                    for i in range(16):
                        codes[16 * s + i] = np.uint8(fitted[16 * s + i, j])
                else:
                    _symmetric_codes(g, s, j, v[16 * s : 16 * s + 16], scale, F(4), codes[16 * s :])
            for i in range(32):
                high = 0
                for s in range(8):
                    high |= (codes[32 * s + i] >> 2) << s
                block[i] = high
            for i in range(SUPER):
                codes[i] &= 3
            _pack_2bit(codes, block[32:96])


@kernel
def quantize_q4_k(x, out, imatrix=None):
    """Affine sub-blocks of 32; scales and minima are 6-bit multiples of d and dmin."""
    blocks, packed = x.reshape(-1, SUPER), out.reshape(-1, 144)
    g = _affine_group(32)
    codes = np.empty(SUPER, np.uint8)
    for first in range(0, blocks.shape[0], LANES):
        lanes.load(blocks, first, g.x)
        if imatrix is None:
            _fit_affine(g, F(15), F(-1), 20)
        else:
            _fit_affine_weighted(g, first, imatrix, 32, F(15), F(2), F(63))
        for j in range(min(LANES, blocks.shape[0] - first)):
            block = packed[first + j]
            _put_scales_and_minima(g, j, F(255), block)
            _affine_codes_6bit(g, j, blocks[first + j], block, F(15), codes)
            for pair in range(4):
                for i in range(32):
                    block[16 + 32 * pair + i] = codes[64 * pair + i] | codes[64 * pair + 32 + i] << 4


@kernel
def quantize_q5_k(x, out, imatrix=None):
    """Affine sub-blocks of 32; scales and minima are 6-bit multiples of d and dmin."""
    blocks, packed = x.reshape(-1, SUPER), out.reshape(-1, 176)
    g = _affine_group(32)
    codes = np.empty(SUPER, np.uint8)
    for first in range(0, blocks.shape[0], LANES):
        lanes.load(blocks, first, g.x)
        if imatrix is None:
            _fit_affine(g, F(31), F(-0.5), 15)
        else:
            _fit_affine_weighted(g, first, imatrix, 32, F(31), F(2), F(63))
        for j in range(min(LANES, blocks.shape[0] - first)):
            block = packed[first + j]
            _put_scales_and_minima(g, j, F(63), block)
            _affine_codes_6bit(g, j, blocks[first + j], block, F(31), codes)
            for i in range(32):
                high = 0
                for s in range(8):
                    high |= (codes[32 * s + i] >> 4) << s
                block[16 + i] = high
            for pair in range(4):
                for i in range(32):
                    block[48 + 32 * pair + i] = codes[64 * pair + i] & 15 | codes[64 * pair + 32 + i] << 4


@kernel
def quantize_q6_k(x, out, imatrix=None):
    """Symmetric sub-blocks of 16; scales are 8-bit multiples of d. The importance matrix is the weight as it is."""
    blocks, packed = x.reshape(-1, SUPER), out.reshape(-1, 210)
    g = _symmetric_group()
    codes = np.empty(SUPER, np.uint8)
    for first in range(0, blocks.shape[0], LANES):
        lanes.load(blocks, first, g.x)
        if imatrix is not None:
            lanes.load_cyclic(imatrix.reshape(-1, SUPER), first, 0, g.imatrix)
        for s in range(16):
            v = g.x[16 * s : 16 * s + 16]
            if imatrix is None:
                for i in range(16):
                    for j in range(LANES):
                        g.w[i, j] = v[i, j] * v[i, j]
                lanes.search_symmetric(v, g.w, F(32), g.tmp, g.scale[s], g.inverse[s])
            else:
                w = g.imatrix[16 * s : 16 * s + 16]
                lanes.search_symmetric(v, w, F(32), g.tmp, g.scale[s], g.inverse[s])
        lanes.largest(g.scale, g.tmp[0], g.tmp[1])
        for j in range(min(LANES, blocks.shape[0] - first)):
            v, block = blocks[first + j], packed[first + j]
            if g.tmp[0, j] < lanes.EMPTY:
                block[:] = 0
                continue
            inverse = F(-128) / g.tmp[1, j]
            d = _put_half(F(1) / inverse, block, 208)
            for s in range(16):
                level = min(np.int32(lanes.nearest(inverse * g.scale[s, j])), 127)
                block[192 + s] = level & 255
                scale = d * F(np.int8(level))
                _symmetric_codes(g, s, j, v[16 * s : 16 * s + 16], scale, F(32), codes[16 * s :])
            for h in range(2):
                q, low, high = codes[128 * h :], block[64 * h :], block[128 + 32 * h :]
                for i in range(32):
                    low[i] = q[i] & 15 | q[i + 64] << 4
                    low[i + 32] = q[i + 32] & 15 | q[i + 96] << 4
                    high[i] = q[i] >> 4 | q[i + 32] >> 4 << 2 | q[i + 64] >> 4 << 4 | q[i + 96] >> 4 << 6


class _Affine(NamedTuple):
    """Work of a group of LANES super-blocks with scales and minima; the last axis of each array is the lane."""

    x: Rows  # values [256]
    w: Rows  # weights of a sub-block
    codes: Rows  # codes of a sub-block
    tmp: Rows
    scale: Rows  # of the sub-blocks; minimum is what is subtracted
    minimum: Rows
    inverse: Rows  # codes of the search are nearest(inverse * (x - offset))
    offset: Rows
    sum_w: Rows  # sums of the weights of the sub-blocks
    level: Rows  # stored scales and minima (0..255) of the sub-blocks
    low: Rows
    d: Rows  # of the super-blocks
    dmin: Rows


class _Symmetric(NamedTuple):
    """Work of a group of LANES super-blocks with scales only; the last axis of each array is the lane."""

    x: Rows
    w: Rows
    imatrix: Rows
    tmp: Rows
    scale: Rows
    inverse: Rows  # codes of the search are nearest(inverse * x)
    sum_w: Rows
    level: Rows
    d: Rows


@inline
def _affine_group(n):
    """Scratch for super-blocks of sub-blocks of n values."""
    rows = SUPER // n
    return _Affine(
        np.empty((SUPER, LANES), F),
        np.empty((n, LANES), F),
        np.empty((n, LANES), F),
        np.empty((lanes.TMP, LANES), F),
        np.empty((rows, LANES), F),
        np.empty((rows, LANES), F),
        np.empty((rows, LANES), F),
        np.empty((rows, LANES), F),
        np.empty((rows, LANES), F),
        np.empty((rows, LANES), F),
        np.empty((rows, LANES), F),
        np.empty(LANES, F),
        np.empty(LANES, F),
    )


@inline
def _symmetric_group():
    return _Symmetric(
        np.empty((SUPER, LANES), F),
        np.empty((16, LANES), F),
        np.empty((SUPER, LANES), F),
        np.empty((lanes.TMP, LANES), F),
        np.empty((16, LANES), F),
        np.empty((16, LANES), F),
        np.empty((16, LANES), F),
        np.empty((16, LANES), F),
        np.empty(LANES, F),
    )


@inline
def _search_affine(g, s, v, top, first, delta, steps, absolute):
    """Fit sub-block s, whose values are v and whose weights g.w."""
    lanes.search_affine(
        v, g.w, top, first, delta, steps, absolute, g.codes, g.tmp, g.scale[s], g.minimum[s], g.inverse[s], g.offset[s]
    )


@inline
def _fit_affine(g, top, first, steps):
    """Scales and minima of Q4_K and Q5_K: values weigh their magnitude plus the root mean square of the sub-block."""
    for s in range(8):
        v = g.x[32 * s : 32 * s + 32]
        lanes.mean_square(v, F(1), g.d)
        for j in range(LANES):
            g.d[j] = np.sqrt(g.d[j])
        for i in range(32):
            for j in range(LANES):
                g.w[i, j] = g.d[j] + abs(v[i, j])
        _search_affine(g, s, v, top, first, F(0.1), steps, False)
    _levels_of_largest(g.scale, F(63), F(63), g.level, g.d)
    _levels_of_largest(g.minimum, F(63), F(63), g.low, g.dmin)


@inline
def _fit_affine_weighted(g, first, imatrix, n, top, factor, levels):
    """Scales and minima of Q2_K, Q4_K and Q5_K under an importance matrix."""
    variance = g.dmin
    lanes.mean_square(g.x, factor, variance)
    for s in range(SUPER // n):
        v = g.x[n * s : n * s + n]
        lanes.load_cyclic(imatrix.reshape(-1, SUPER), first, n * s, g.codes)
        lanes.importance(v, g.codes, variance, g.w, g.sum_w[s])
        _search_affine(g, s, v, top, F(-0.9), F(0.05), 36, False)
    lanes.search_positive(g.scale, g.sum_w, levels, g.tmp, g.level, g.d)
    lanes.search_positive(g.minimum, g.sum_w, levels, g.tmp, g.low, g.dmin)


@inline
def _fit_symmetric_weighted(g, first, imatrix):
    """Scales of Q3_K under an importance matrix, and their 6-bit levels by the same search."""
    lanes.mean_square(g.x, F(2), g.d)
    for s in range(16):
        v = g.x[16 * s : 16 * s + 16]
        lanes.load_cyclic(imatrix.reshape(-1, SUPER), first, 16 * s, g.imatrix[:16])
        lanes.importance(v, g.imatrix, g.d, g.w, g.sum_w[s])
        lanes.search_symmetric(v, g.w, F(4), g.tmp, g.scale[s], g.inverse[s])
    inverse = g.imatrix[0]
    lanes.search_symmetric(g.scale, g.sum_w, F(32), g.tmp, g.d, inverse)
    for s in range(16):
        for j in range(LANES):
            level = lanes.clamp(lanes.nearest(inverse[j] * g.scale[s, j]), F(-32), F(31)) + F(32)
            g.level[s, j] = F(0) if inverse[j] != inverse[j] else level


@inline
def _levels_of_largest(values, top, most, levels, unit):
    """Store values as multiples of their largest / top: `unit` [LANES] and `levels`, bytes of at most `most`."""
    peak, inv = unit, np.empty(LANES, F)
    for j in range(LANES):
        peak[j] = F(0)
    for s in range(values.shape[0]):
        for j in range(LANES):
            peak[j] = values[s, j] if values[s, j] > peak[j] else peak[j]
    for j in range(LANES):
        inv[j] = top / peak[j] if peak[j] > F(0) else F(0)
    for s in range(values.shape[0]):
        for j in range(LANES):
            level = lanes.byte(lanes.nearest(inv[j] * values[s, j]))
            levels[s, j] = most if level > most else level
    for j in range(LANES):
        unit[j] = peak[j] / top


@inline
def _signed_levels_of_largest(g):
    """6-bit levels of the scales of Q3_K: multiples of the largest one / -32, stored plus 32."""
    amax, peak = g.tmp[0], g.tmp[1]
    lanes.largest(g.scale, amax, peak)
    for s in range(16):
        for j in range(LANES):
            level = F(np.int8(np.int32(lanes.nearest(F(-32) / peak[j] * g.scale[s, j]))))
            level = lanes.clamp(level, F(-32), F(31)) + F(32)
            g.level[s, j] = level if amax[j] > F(0) else F(0)
    for j in range(LANES):
        g.d[j] = F(1) / (F(-32) / peak[j]) if amax[j] > F(0) else F(0)


@inline
def _affine_codes(g, s, j, v, scale, minimum, top, codes):
    """Codes of sub-block s of lane j for the stored scale and minimum; those of the search where the scale is 0."""
    if scale != F(0):
        for i in range(v.shape[0]):
            codes[i] = np.uint8(lanes.clamp(lanes.nearest((v[i] + minimum) / scale), F(0), top))
    else:
        inverse, offset = g.inverse[s, j], g.offset[s, j]
        for i in range(v.shape[0]):
            codes[i] = np.uint8(lanes.clamp(lanes.nearest(inverse * (v[i] - offset)), F(0), top))


@inline
def _affine_codes_6bit(g, j, v, block, top, codes):
    d, dmin = _half_at(block, 0), _half_at(block, 2)
    for s in range(8):
        scale, minimum = _scale_and_minimum(d, dmin, block[4:16], s)
        _affine_codes(g, s, j, v[32 * s : 32 * s + 32], scale, minimum, top, codes[32 * s :])


@inline
def _symmetric_codes(g, s, j, v, scale, top, codes):
    """Codes, plus top, of sub-block s of lane j for the stored scale; those of the search where the scale is 0."""
    if scale != F(0):
        for i in range(v.shape[0]):
            codes[i] = np.uint8(lanes.clamp(lanes.nearest(v[i] / scale), -top, top - F(1)) + top)
    else:
        inverse = g.inverse[s, j]
        for i in range(v.shape[0]):
            code = lanes.clamp(lanes.nearest(inverse * v[i]), -top, top - F(1)) + top
            codes[i] = np.uint8(F(0) if inverse != inverse else code)


@inline
def _put_scales_and_minima(g, j, most, block):
    """d, dmin and the 12 bytes of Q4_K and Q5_K, which `_scale_and_minimum` reads; `most` limits the 6-bit levels."""
    _put_half(g.d[j], block, 0)
    _put_half(g.dmin[j], block, 2)
    packed = block[4:16]
    for s in range(4):
        packed[s] = np.uint8(min(g.level[s, j], most))
        packed[s + 4] = np.uint8(min(g.low[s, j], most))
    for s in range(4, 8):
        scale, minimum = np.uint8(min(g.level[s, j], most)), np.uint8(min(g.low[s, j], most))
        packed[s + 4] = scale & 15 | minimum << 4
        packed[s - 4] |= scale >> 4 << 6
        packed[s] |= minimum >> 4 << 6


@inline
def _pack_scales_3bit(level, packed):
    """The 12 bytes of Q3_K, which `_scale_3bit` reads."""
    packed[:] = 0
    for s in range(16):
        code = np.uint8(level[s])
        packed[s % 8] |= (code & 15) << (4 * (s // 8))
        packed[8 + s % 4] |= code >> 4 << (2 * (s // 4))


@inline
def _pack_2bit(codes, packed):
    """256 codes of 2 bits to 64 bytes, four codes 32 apart in a byte."""
    for h in range(2):
        q, p = codes[128 * h :], packed[32 * h :]
        for i in range(32):
            p[i] = q[i] | q[i + 32] << 2 | q[i + 64] << 4 | q[i + 96] << 6


@inline
def _put_half(value, block, offset):
    """Store a float32 as little-endian float16 at a byte offset; returns what was stored, as float32."""
    half = float_to_half(value)
    block[offset] = half & 255
    block[offset + 1] = half >> 8
    return half_to_float(half)


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
    TensorType.Q2_K: Codec(TensorType.Q2_K, dequantize_q2_k, quantize_q2_k, quantize_q2_k),
    TensorType.Q3_K: Codec(TensorType.Q3_K, dequantize_q3_k, quantize_q3_k, quantize_q3_k),
    TensorType.Q4_K: Codec(TensorType.Q4_K, dequantize_q4_k, quantize_q4_k, quantize_q4_k),
    TensorType.Q5_K: Codec(TensorType.Q5_K, dequantize_q5_k, quantize_q5_k, quantize_q5_k),
    TensorType.Q6_K: Codec(TensorType.Q6_K, dequantize_q6_k, quantize_q6_k, quantize_q6_k),
}
