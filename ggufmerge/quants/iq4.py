"""IQ4_NL and IQ4_XS: 4-bit codes that index 16 unevenly spaced levels.

IQ4_NL has a float16 scale for each 32 values. IQ4_XS has super-blocks of 256: a float16 scale and a 6-bit one for
each 32 values.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np

from ggufmerge.kernels import kernel
from ggufmerge.quants.blocks import load_half, store_half
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.iq import (
    LANES,
    clamp,
    codec,
    inline,
    nearest_int,
    negate,
    sum_squares,
    transpose,
    weigh,
    zeros,
)
from ggufmerge.quants.nearest import nearest_level
from ggufmerge.quants.simd import absolute, convert, load, select, splat, store
from ggufmerge.types import TensorType

F = np.float32
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# Where ggml's choice of the nearer of two levels changes: exact in float32, and the upper level wins a tie.
MIDDLES = (LEVELS[:-1] + LEVELS[1:]) / F(2)


@kernel
def _dequantize_iq4_nl(raw, out):
    """Block: d, 16 bytes of codes, value i in the low and value i + 16 in the high nibble of byte i."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 32):
            block = raw[r, 18 * b : 18 * b + 18]
            y = out[r, 32 * b : 32 * b + 32]
            d = load_half(block, 0)
            for i in range(16):
                y[i] = d * LEVELS[block[2 + i] & 15]
                y[i + 16] = d * LEVELS[block[2 + i] >> 4]


@kernel
def _dequantize_iq4_xs(raw, out):
    """Block: d, 2 bytes of scales' high bits, 4 of their low nibbles, 128 of codes, 16 for each 32 values."""
    for r in range(raw.shape[0]):
        for b in range(out.shape[1] // 256):
            block = raw[r, 136 * b : 136 * b + 136]
            d = load_half(block, 0)
            high = np.int32(block[2]) | np.int32(block[3]) << 8
            for s in range(8):
                y = out[r, 256 * b + 32 * s : 256 * b + 32 * s + 32]
                codes = block[8 + 16 * s : 24 + 16 * s]
                scale = np.int32(block[4 + s // 2] >> (4 * (s % 2)) & 15) | (high >> 2 * s & 3) << 4
                dl = d * F(scale - 32)
                for i in range(16):
                    y[i] = dl * LEVELS[codes[i] & 15]
                    y[i + 16] = dl * LEVELS[codes[i] >> 4]


@kernel
def _recode_iq4_nl(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // 32):
        _recode_32(raw, 18 * b + 2, load_half(raw, 18 * b), x, 32 * b, out)


@kernel
def _recode_iq4_xs(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for s in range(x.size // 32):
        block, sub = 136 * (s // 8), s % 8
        high = np.int32(raw[block + 2]) | np.int32(raw[block + 3]) << 8
        scale = np.int32(raw[block + 4 + sub // 2] >> (4 * (sub % 2)) & 15) | (high >> 2 * sub & 3) << 4
        _recode_32(raw, block + 8 + 16 * sub, load_half(raw, block) * F(scale - 32), x, 32 * s, out)


@kernel
def _quantize_iq4_nl(x, out, imatrix):
    """x: float32 [blocks * 32], out: uint8 [blocks * 18], imatrix: float32 [n of a row], empty for none."""
    blocks = x.size // 32
    values, weights, codes = np.empty(32 * LANES, F), np.empty(32 * LANES, F), np.empty(32 * LANES, np.int32)
    scales = np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        transpose(x, first, blocks, 32, 0, 32, values)
        mean = zeros()
        if imatrix.size:
            mean = sum_squares(values, 32) * F(2 / 32)
            transpose(imatrix, first, blocks, 32, 0, 32, weights)
        weigh(values, weights, 0, 32, mean, imatrix.size > 0)
        scale = _search_scale(values, weights, 0)
        store(scales, 0, scale)
        _round_to_levels(values, select(scale != F(0), F(1) / scale, F(0)), codes, 0)
        for lane in range(LANES):
            o = 18 * min(first + lane, blocks - 1)
            store_half(out, o, scales[lane])
            for i in range(16):
                out[o + 2 + i] = codes[i * LANES + lane] | codes[(i + 16) * LANES + lane] << 4


@kernel
def _quantize_iq4_xs(x, out, imatrix):
    """x: float32 [blocks * 256], out: uint8 [blocks * 136], imatrix: float32 [n of a row], empty for none."""
    blocks = x.size // 256
    values, weights, codes = np.empty(256 * LANES, F), np.empty(32 * LANES, F), np.empty(256 * LANES, np.int32)
    scales, steps, d = np.empty(8 * LANES, F), np.empty(8 * LANES, np.int32), np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        transpose(x, first, blocks, 256, 0, 256, values)
        mean = zeros()
        if imatrix.size:
            mean = sum_squares(values, 256) * F(2 / 256)
        largest, signed = zeros(), zeros()
        for s in range(8):
            if imatrix.size:
                transpose(imatrix, first, blocks, 256, 32 * s, 32, weights)
            weigh(values, weights, 32 * s, 32, mean, imatrix.size > 0)
            scale = _search_scale(values, weights, 32 * s)
            store(scales, LANES * s, scale)
            larger = absolute(scale) > largest
            largest = select(larger, absolute(scale), largest)
            signed = select(larger, scale, signed)
        step = negate(signed) / F(32)
        store(d, 0, step)
        inverse = select(step != F(0), F(1) / step, F(0))
        for s in range(8):
            multiple = clamp(nearest_int(inverse * load(scales, LANES * s, LANES)), -32, 31)
            scale = step * convert(multiple, np.float32)
            store(steps, LANES * s, multiple + 32)
            _round_to_levels(values, select(scale != F(0), F(1) / scale, F(0)), codes, 32 * s)
        for lane in range(LANES):
            o = 136 * min(first + lane, blocks - 1)
            store_half(out, o, d[lane])
            high = 0
            for s in range(8):
                high |= steps[LANES * s + lane] >> 4 << 2 * s
            out[o + 2] = high & 255
            out[o + 3] = high >> 8
            for s in range(4):
                out[o + 4 + s] = steps[LANES * 2 * s + lane] & 15 | (steps[LANES * (2 * s + 1) + lane] & 15) << 4
            for s in range(8):
                for i in range(16):
                    a = (32 * s + i) * LANES + lane
                    out[o + 8 + 16 * s + i] = codes[a] | codes[a + 16 * LANES] << 4


@inline
def _recode_32(raw, at, scale, x, start, out):
    """The 16 bytes of codes at `at` for the 32 values of x from `start`."""
    codes = convert(load(raw, at, 16), np.int32)
    low = nearest_level(load(x, start, 16), codes & 15, LEVELS, scale, -127, 113)
    high = nearest_level(load(x, start + 16, 16), codes >> 4, LEVELS, scale, -127, 113)
    store(out, at, convert(low | high << 4, np.uint8))


@kernel
def _search_scale(values, weights, offset):
    """The scale of each lane's 32 values from `offset`: the best of 16 in weighted least squares."""
    start, end = offset * LANES, (offset + 32) * LANES
    largest, signed = zeros(), zeros()
    for a in range(start, end, LANES):
        v = load(values, a, LANES)
        larger = absolute(v) > largest
        largest = select(larger, absolute(v), largest)
        signed = select(larger, v, signed)
    scale, best = zeros(), zeros()
    for attempt in range(-8, 8):
        # the first attempt lets the largest value be the lowest level, the others nearly so
        inverse = F(1) / (negate(signed) / F(-127)) if attempt == -8 else F(attempt - 127) / signed
        sum_qx, sum_qq = zeros(), zeros()
        for a in range(start, end, LANES):
            v = load(values, a, LANES)
            q = _level(inverse * v)
            wq = load(weights, a - start, LANES) * q
            sum_qx = sum_qx + wq * v
            sum_qq = sum_qq + wq * q
        positive = sum_qq > F(0)
        if attempt == -8:
            scale = select(positive, sum_qx / sum_qq, F(0))
            best = scale * sum_qx
        else:
            better = positive & (sum_qx * sum_qx > best * sum_qq)
            scale = select(better, sum_qx / sum_qq, scale)
            best = select(better, scale * sum_qx, best)
    return select(largest < F(1e-15), F(0), scale)


@inline
def _round_to_levels(values, inverse, codes, offset):
    for a in range(offset * LANES, (offset + 32) * LANES, LANES):
        store(codes, a, _code(inverse * load(values, a, LANES)))


@inline
def _level(x):
    """The level nearest to each element; NaN takes the highest, as in ggml's binary search."""
    level = splat(F(-127), LANES)
    for k in range(15):
        level = select(x < MIDDLES[k], level, LEVELS[k + 1])
    return level


@inline
def _code(x):
    """The index of that level."""
    code = splat(np.int32(0), LANES)
    for k in range(15):
        code = select(x < MIDDLES[k], code, np.int32(k + 1))
    return code


GRID = Grid(0.29, 1.04, spacing=16, levels=tuple(map(int, LEVELS)))
CODECS = {
    kind: codec(kind, dequantize, quantize, limit=limit, grid=GRID, recode=recode)
    for kind, dequantize, quantize, limit, recode in (
        (TensorType.IQ4_NL, _dequantize_iq4_nl, _quantize_iq4_nl, 127, _recode_iq4_nl),
        (TensorType.IQ4_XS, _dequantize_iq4_xs, _quantize_iq4_xs, 4064, _recode_iq4_xs),
    )
}
