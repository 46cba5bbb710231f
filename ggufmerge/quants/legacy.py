"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 values with one float16 scale `d` and, in Q4_1 and Q5_1, a minimum `m`.

A value is `d * code` with a signed code, or `d * code + m`. The low 4 bits of codes j and j + 16 share byte j; the
fifth bits of Q5 stand in a 32-bit word of their own.

Without an importance matrix the scale follows from the extreme values.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from ggufmerge.quants.blocks import in_range, inverse, load_half, store_half
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.half import inlined
from ggufmerge.quants.simd import (
    absolute,
    bit_mask,
    convert,
    first,
    largest,
    load,
    mask_bytes,
    round_half_away,
    select,
    store,
    view,
)
from ggufmerge.types import TensorType

F = np.float32
BLOCK = 32

kernel: Callable = njit(nogil=True, cache=True, error_model="numpy")


@kernel
def dequantize_q4_0(raw, out):
    """Block: d, 16 bytes of codes + 8."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // BLOCK):
        block = 18 * b
        d = load_half(raw, block)
        codes = load(raw, block + 2, 16)
        store(y, BLOCK * b, (convert(codes & 15, F) - 8) * d)
        store(y, BLOCK * b + 16, (convert(codes >> 4, F) - 8) * d)


@kernel
def dequantize_q4_1(raw, out):
    """Block: d, m, 16 bytes of codes."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // BLOCK):
        block = 20 * b
        d, m = load_half(raw, block), load_half(raw, block + 2)
        codes = load(raw, block + 4, 16)
        store(y, BLOCK * b, convert(codes & 15, F) * d + m)
        store(y, BLOCK * b + 16, convert(codes >> 4, F) * d + m)


@kernel
def dequantize_q5_0(raw, out):
    """Block: d, 32 fifth bits, 16 bytes of the lower bits; codes + 16."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // BLOCK):
        block = 22 * b
        d = load_half(raw, block)
        low, high = _five_bit_codes(raw, block + 2)
        store(y, BLOCK * b, (convert(low, F) - 16) * d)
        store(y, BLOCK * b + 16, (convert(high, F) - 16) * d)


@kernel
def dequantize_q5_1(raw, out):
    """Block: d, m, 32 fifth bits, 16 bytes of the lower bits of codes."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // BLOCK):
        block = 24 * b
        d, m = load_half(raw, block), load_half(raw, block + 2)
        low, high = _five_bit_codes(raw, block + 4)
        store(y, BLOCK * b, convert(low, F) * d + m)
        store(y, BLOCK * b + 16, convert(high, F) * d + m)


@kernel
def dequantize_q8_0(raw, out):
    """Block: d, 32 int8 codes."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // BLOCK):
        block = 34 * b
        d = load_half(raw, block)
        store(y, BLOCK * b, convert(view(load(raw, block + 2, 16), np.int8), F) * d)
        store(y, BLOCK * b + 16, convert(view(load(raw, block + 18, 16), np.int8), F) * d)


@kernel
def quantize_q4_0(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // BLOCK):
        block = 18 * b
        d = _extreme(x, BLOCK * b) / F(-8)
        factor = inverse(d)
        store_half(raw, block, d)
        low = _codes(load(x, BLOCK * b, 16) * factor + F(8.5), 15)
        high = _codes(load(x, BLOCK * b + 16, 16) * factor + F(8.5), 15)
        store(raw, block + 2, convert(low | high << 4, np.uint8))


@kernel
def quantize_q4_1(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // BLOCK):
        block = 20 * b
        m, spread = _range(x, BLOCK * b)
        d = spread / F(15)
        factor = inverse(d)
        store_half(raw, block, d)
        store_half(raw, block + 2, m)
        low = _codes((load(x, BLOCK * b, 16) - m) * factor + F(0.5), 15)
        high = _codes((load(x, BLOCK * b + 16, 16) - m) * factor + F(0.5), 15)
        store(raw, block + 4, convert(low | high << 4, np.uint8))


@kernel
def quantize_q5_0(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // BLOCK):
        block = 22 * b
        d = _extreme(x, BLOCK * b) / F(-16)
        factor = inverse(d)
        store_half(raw, block, d)
        low = _codes(load(x, BLOCK * b, 16) * factor + F(16.5), 31)
        high = _codes(load(x, BLOCK * b + 16, 16) * factor + F(16.5), 31)
        _store_five_bit_codes(raw, block + 2, low, high)


@kernel
def quantize_q5_1(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // BLOCK):
        block = 24 * b
        m, spread = _range(x, BLOCK * b)
        d = spread / F(31)
        factor = inverse(d)
        store_half(raw, block, d)
        store_half(raw, block + 2, m)
        low = _codes((load(x, BLOCK * b, 16) - m) * factor + F(0.5), 31)
        high = _codes((load(x, BLOCK * b + 16, 16) - m) * factor + F(0.5), 31)
        _store_five_bit_codes(raw, block + 4, low, high)


@kernel
def quantize_q8_0(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // BLOCK):
        block = 34 * b
        values = load(x, BLOCK * b, 32)
        d = largest(absolute(values)) / F(127)
        store_half(raw, block, d)
        codes = in_range(round_half_away(values * inverse(d)), 128)
        store(raw, block + 2, view(convert(codes, np.int8), np.uint8))


@inlined
def _extreme(x, start):
    """The first value of a block with the largest magnitude, sign kept; +0 in a zero block."""
    magnitudes = absolute(load(x, start, BLOCK))
    top = largest(magnitudes)
    return x[start + first(magnitudes == top)] if top > 0 else F(0)


@inlined
def _range(x, start):
    """Smallest value of a block, and the difference between the largest and it. Among zeros of both signs ggml takes
    the first, and its sign shows in the bytes.
    """
    values = load(x, start, BLOCK)
    low, high = -largest(F(0) - values), largest(values)
    return x[start + first(values == low)], high - low if high > low else F(0)


@inlined
def _codes(values, top):
    """Positive values truncated to int32 codes of at most `top`."""
    codes = convert(in_range(values, 64), np.int32)
    return select(codes > top, np.int32(top), codes)


@inlined
def _five_bit_codes(raw, offset):
    """Codes 0..15 and 16..31 of a Q5 block."""
    codes = load(raw, offset + 4, 16)
    low = codes & 15 | select(bit_mask(load(raw, offset, 2)), np.uint8(16), codes & 0)
    high = codes >> 4 | select(bit_mask(load(raw, offset + 2, 2)), np.uint8(16), codes & 0)
    return low, high


@inlined
def _store_five_bit_codes(raw, offset, low, high):
    store(raw, offset, mask_bytes(low > 15))
    store(raw, offset + 2, mask_bytes(high > 15))
    store(raw, offset + 4, convert((low & 15) | (high & 15) << 4, np.uint8))


CODECS = {
    TensorType.Q4_0: Codec(TensorType.Q4_0, dequantize_q4_0, quantize_q4_0),
    TensorType.Q4_1: Codec(TensorType.Q4_1, dequantize_q4_1, quantize_q4_1),
    TensorType.Q5_0: Codec(TensorType.Q5_0, dequantize_q5_0, quantize_q5_0),
    TensorType.Q5_1: Codec(TensorType.Q5_1, dequantize_q5_1, quantize_q5_1),
    TensorType.Q8_0: Codec(TensorType.Q8_0, dequantize_q8_0, quantize_q8_0),
}
