"""TQ1_0 and TQ2_0: values of -1, 0 and 1 times a float16 scale, for BitNet b1.58 and TriLM models.

TQ2_0 gives each value 2 bits. TQ1_0 packs five values into a byte as the fraction 0.t1 t2 t3 t4 t5 in base 3, scaled to
256 and rounded up: multiplying the byte by 3 pushes the next digit out at the top. The digits of a byte belong to
values that stand one stride apart, so that a vector of bytes unpacks into vectors of values.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (`quantize_row_tq*_ref`) of llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np

from ggufmerge.kernels import kernel
from ggufmerge.quants.blocks import in_range, inverse, load_half, store_half
from ggufmerge.quants.codec import HALF_MAX, Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.half import inlined
from ggufmerge.quants.nearest import nearest_on_grid
from ggufmerge.quants.simd import absolute, convert, largest, load, round_half_away, select, splat, store
from ggufmerge.types import TensorType

F = np.float32
BLOCK = 256


@kernel
def dequantize_tq1_0(raw, out):
    """Block: 32 bytes of five values with stride 32, 16 of five with stride 16, 4 of four with stride 4, d."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // BLOCK):
        block, first = 54 * b, BLOCK * b
        d = load_half(raw, block + 52)
        digits = convert(load(raw, block, 32), np.uint16)
        for n in range(5):
            digits = (digits & 255) * 3
            store(y, first + 32 * n, _trits(digits >> 8) * d)
        digits_16 = convert(load(raw, block + 32, 16), np.uint16)
        for n in range(5):
            digits_16 = (digits_16 & 255) * 3
            store(y, first + 160 + 16 * n, _trits(digits_16 >> 8) * d)
        digits_4 = convert(load(raw, block + 48, 4), np.uint16)
        for n in range(4):
            digits_4 = (digits_4 & 255) * 3
            store(y, first + 240 + 4 * n, _trits(digits_4 >> 8) * d)


@kernel
def recode_tq1_0(raw, x, out):
    """Digits that all stay keep their byte, of which ggml writes one of two for some numbers."""
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // BLOCK):
        block, first = 54 * b, BLOCK * b
        d = load_half(raw, block + 52)
        fractions = load(raw, block, 32)
        rest, number, stored = convert(fractions, np.uint16), splat(np.uint16(0), 32), splat(np.uint16(0), 32)
        for n in range(5):
            rest = (rest & 255) * 3
            stored = stored * 3 + (rest >> 8)
            number = number * 3 + _nearest_digits(load(x, first + 32 * n, 32), rest >> 8, d, 2)
        store(out, block, select(number == stored, fractions, _fraction(number)))
        fractions_16 = load(raw, block + 32, 16)
        rest_16, number_16 = convert(fractions_16, np.uint16), splat(np.uint16(0), 16)
        stored_16 = number_16
        for n in range(5):
            rest_16 = (rest_16 & 255) * 3
            stored_16 = stored_16 * 3 + (rest_16 >> 8)
            number_16 = number_16 * 3 + _nearest_digits(load(x, first + 160 + 16 * n, 16), rest_16 >> 8, d, 2)
        store(out, block + 32, select(number_16 == stored_16, fractions_16, _fraction(number_16)))
        fractions_4 = load(raw, block + 48, 4)
        rest_4, number_4 = convert(fractions_4, np.uint16), splat(np.uint16(0), 4)
        stored_4 = number_4
        for n in range(4):
            rest_4 = (rest_4 & 255) * 3
            stored_4 = stored_4 * 3 + (rest_4 >> 8)
            number_4 = number_4 * 3 + _nearest_digits(load(x, first + 240 + 4 * n, 4), rest_4 >> 8, d, 2)
        store(out, block + 48, select(number_4 == stored_4, fractions_4, _fraction(number_4 * 3)))


@kernel
def quantize_tq1_0(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // BLOCK):
        block, start = 54 * b, BLOCK * b
        d = _scale(x, start)
        factor = inverse(d)
        number = _digits(load(x, start, 32) * factor)
        for n in range(1, 5):
            number = number * 3 + _digits(load(x, start + 32 * n, 32) * factor)
        store(raw, block, _fraction(number))
        number_16 = _digits(load(x, start + 160, 16) * factor)
        for n in range(1, 5):
            number_16 = number_16 * 3 + _digits(load(x, start + 160 + 16 * n, 16) * factor)
        store(raw, block + 32, _fraction(number_16))
        number_4 = _digits(load(x, start + 240, 4) * factor)
        for n in range(1, 4):
            number_4 = number_4 * 3 + _digits(load(x, start + 240 + 4 * n, 4) * factor)
        store(raw, block + 48, _fraction(number_4 * 3))
        store_half(raw, block + 52, d)


@kernel
def dequantize_tq2_0(raw, out):
    """Block: twice 32 bytes of four values with stride 32, d."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // BLOCK):
        block = 66 * b
        d = load_half(raw, block + 64)
        for half in range(2):
            codes = load(raw, block + 32 * half, 32)
            for n in range(4):
                store(y, BLOCK * b + 128 * half + 32 * n, _trits(codes & 3) * d)
                codes = codes >> 2


@kernel
def recode_tq2_0(raw, x, out):
    """Code 3, which stands for 2 d, is as good as any, though ggml's quantizer does not need it."""
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // BLOCK):
        block = 66 * b
        d = load_half(raw, block + 64)
        for half in range(2):
            codes, packed = load(raw, block + 32 * half, 32), splat(np.uint16(0), 32)
            for n in range(4):
                wanted = load(x, BLOCK * b + 128 * half + 32 * n, 32)
                packed = packed | _nearest_digits(wanted, codes & 3, d, 3) << (2 * n)
                codes = codes >> 2
            store(out, block + 32 * half, convert(packed, np.uint8))


@kernel
def quantize_tq2_0(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // BLOCK):
        block = 66 * b
        d = _scale(x, BLOCK * b)
        factor = inverse(d)
        for half in range(2):
            start = BLOCK * b + 128 * half
            codes = _digits(load(x, start, 32) * factor)
            for n in range(1, 4):
                codes = codes | _digits(load(x, start + 32 * n, 32) * factor) << (2 * n)
            store(raw, block + 32 * half, convert(codes, np.uint8))
        store_half(raw, block + 64, d)


@inlined
def _trits(digits):
    return convert(digits, F) - 1


@inlined
def _nearest_digits(x, digits, d, top):
    """Digits up to `top` (uint16) of the values (digit - 1) * d nearest to x."""
    return convert(nearest_on_grid(x, _trits(digits), d, F(0), -1, top - 1) + 1, np.uint16)


@inlined
def _scale(x, start):
    """The largest magnitude of a block."""
    top = absolute(load(x, start, 32))
    for i in range(32, BLOCK, 32):
        magnitudes = absolute(load(x, start + i, 32))
        top = select(magnitudes > top, magnitudes, top)
    return largest(top)


@inlined
def _digits(values):
    """Values of at most 1 rounded to -1, 0, 1, as digits 0, 1, 2 (uint16)."""
    return convert(in_range(round_half_away(values), 2) + 1, np.uint16)


@inlined
def _fraction(number):
    """The number n of five digits as the byte ceil(256 n / 243)."""
    return convert((number * 256 + 242) // 243, np.uint8)


CODECS = {
    kind: Codec(kind, dequantize, quantize, limit=limit * HALF_MAX, scales=scales, grid=grid, recode=recode)
    for kind, dequantize, quantize, recode, limit, scales, grid in (
        (TensorType.TQ1_0, dequantize_tq1_0, quantize_tq1_0, recode_tq1_0, 1, (52,), Grid(3.08)),
        (TensorType.TQ2_0, dequantize_tq2_0, quantize_tq2_0, recode_tq2_0, 2, (64,), Grid(3.08)),
    )
}
