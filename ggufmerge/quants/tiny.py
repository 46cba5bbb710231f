"""Q1_0 and Q2_0: one bit (the sign) or two bits (-1, 0, 1, 2) a value, times a float16 scale.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (`quantize_row_q1_0_ref`, `quantize_row_q2_0_ref`) of llama.cpp
v0.5.0.
"""

from __future__ import annotations

import numpy as np

from ggufmerge.kernels import kernel
from ggufmerge.quants.blocks import inverse, load_half, load_scale, store_half
from ggufmerge.quants.codec import HALF_MAX, Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.half import inlined
from ggufmerge.quants.nearest import limited, nearest_on_grid
from ggufmerge.quants.simd import (
    absolute,
    bit_mask,
    convert,
    indices,
    largest,
    load,
    mask_bytes,
    repeat,
    round_half_away,
    select,
    splat,
    store,
    view,
)
from ggufmerge.types import TensorType

F = np.float32


@kernel
def dequantize_q1_0(raw, out):
    """Block of 128: d, 16 bytes of bits, set for +d."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // 128):
        d = load_half(raw, 18 * b)
        negative = splat(-d, 32)
        for i in range(4):
            positive = bit_mask(load(raw, 18 * b + 2 + 4 * i, 4))
            store(y, 128 * b + 32 * i, select(positive, d, negative))


@kernel
def recode_q1_0(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // 128):
        d = load_half(raw, 18 * b)
        for i in range(4):
            stored = load(raw, 18 * b + 2 + 4 * i, 4)
            v = limited(load(x, 128 * b + 32 * i, 32), -abs(d), abs(d))
            above, below = absolute(v - d), absolute(v + d)
            bits = stored & (mask_bytes(below < above) ^ 255) | mask_bytes(above < below)
            store(out, 18 * b + 2 + 4 * i, bits)


@kernel
def quantize_q1_0(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // 128):
        total = F(0)
        for i in range(128 * b, 128 * b + 128):
            total += abs(x[i])
        store_half(raw, 18 * b, total / F(128))
        for i in range(4):
            store(raw, 18 * b + 2 + 4 * i, mask_bytes(load(x, 128 * b + 32 * i, 32) >= 0))


@kernel
def dequantize_q2_0(raw, out):
    """Block of 64: d, 16 bytes of four codes + 1, the first in the lowest bits."""
    raw, y = raw.ravel(), out.ravel()
    places = (indices(np.uint8, 16) & 3) << 1
    for b in range(y.size // 64):
        d = load_scale(raw, 18 * b)
        for i in range(4):
            codes = (repeat(load(raw, 18 * b + 2 + 4 * i, 4), 4) >> places) & 3
            store(y, 64 * b + 16 * i, (convert(codes, F) - 1) * d)


@kernel
def recode_q2_0(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    places = (indices(np.uint8, 16) & 3) << 1
    for b in range(x.size // 64):
        d = load_half(raw, 18 * b)
        for i in range(4):
            codes = (repeat(load(raw, 18 * b + 2 + 4 * i, 4), 4) >> places) & 3
            v = nearest_on_grid(load(x, 64 * b + 16 * i, 16), convert(codes, F) - 1, d, F(0), -1, 2)
            store(out, 18 * b + 2 + 4 * i, _packed(convert(v + 1, np.uint8)))


@kernel
def quantize_q2_0(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // 64):
        a, c = absolute(load(x, 64 * b, 32)), absolute(load(x, 64 * b + 32, 32))
        d = largest(select(a > c, a, c))
        factor = inverse(d)
        store_half(raw, 18 * b, d)
        for i in range(2):
            rounded = round_half_away(load(x, 64 * b + 32 * i, 32) * factor)
            # A block of subnormals has an infinite factor: ggml ends in code 0 for infinities and NaN alike.
            codes = convert(select(absolute(rounded) < 2, rounded, F(-1)) + 1, np.uint8)
            store(raw, 18 * b + 2 + 8 * i, _packed(codes))


@inlined
def _packed(codes):
    """Codes of 2 bits, four to a byte."""
    four = view(codes, np.uint32)
    return convert(four | four >> 6 | four >> 12 | four >> 18, np.uint8)


CODECS = {
    kind: Codec(kind, dequantize, quantize, limit=limit * HALF_MAX, scales=(0,), grid=grid, recode=recode)
    for kind, dequantize, quantize, recode, limit, grid in (
        (TensorType.Q1_0, dequantize_q1_0, quantize_q1_0, recode_q1_0, 128, Grid(1.6, 2.05, spacing=2)),
        (TensorType.Q2_0, dequantize_q2_0, quantize_q2_0, recode_q2_0, 2, Grid(2.64, 1.04)),
    )
}
