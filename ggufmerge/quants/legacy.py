"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 values with one float16 scale `d` and, in Q4_1 and Q5_1, a minimum `m`.

A value is `d * code` with a signed code, or `d * code + m`. The low 4 bits of codes j and j + 16 share byte j; the
fifth bits of Q5 stand in a 32-bit word of their own.

Without an importance matrix the scale follows from the extreme values. With one it is searched, as in K-quants, for the
smallest error weighted by imatrix * sqrt(mean of x**2 over the row + x**2); Q8_0 takes no matrix.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.quants.blocks import in_range, inverse, load_half, load_scale, store_half
from ggufmerge.quants.codec import HALF_MAX, Codec, find_bad_half
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.half import inlined
from ggufmerge.quants.lanes import LANES, nearest_between, search_affine, search_symmetric, weigh
from ggufmerge.quants.nearest import nearest_on_grid, signed
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
    splat,
    store,
    view,
)
from ggufmerge.types import TensorType

F = np.float32
BLOCK = 32
EXPONENT = np.uint8(0x7C)  # of a float16, in its upper byte: all set in NaN and infinity


@kernel
def dequantize_q4_0(raw, out):
    """Block: d, 16 bytes of codes + 8."""
    raw, y = raw.ravel(), out.ravel()
    top = np.uint8(0)
    for b in range(y.size // BLOCK):
        block = 18 * b
        top = max(top, raw[block + 1] & EXPONENT)
        d = load_scale(raw, block)
        codes = load(raw, block + 2, 16)
        store(y, BLOCK * b, (convert(codes & 15, F) - 8) * d)
        store(y, BLOCK * b + 16, (convert(codes >> 4, F) - 8) * d)
    return top == EXPONENT


@kernel
def dequantize_q4_1(raw, out):
    """Block: d, m, 16 bytes of codes."""
    raw, y = raw.ravel(), out.ravel()
    top = np.uint8(0)
    for b in range(y.size // BLOCK):
        block = 20 * b
        top = max(top, raw[block + 1] & EXPONENT, raw[block + 3] & EXPONENT)
        d, m = load_scale(raw, block), load_scale(raw, block + 2)
        codes = load(raw, block + 4, 16)
        store(y, BLOCK * b, convert(codes & 15, F) * d + m)
        store(y, BLOCK * b + 16, convert(codes >> 4, F) * d + m)
    return top == EXPONENT


@kernel
def dequantize_q5_0(raw, out):
    """Block: d, 32 fifth bits, 16 bytes of the lower bits; codes + 16."""
    raw, y = raw.ravel(), out.ravel()
    top = np.uint8(0)
    for b in range(y.size // BLOCK):
        block = 22 * b
        top = max(top, raw[block + 1] & EXPONENT)
        d = load_scale(raw, block)
        low, high = _five_bit_codes(raw, block + 2)
        store(y, BLOCK * b, (convert(low, F) - 16) * d)
        store(y, BLOCK * b + 16, (convert(high, F) - 16) * d)
    return top == EXPONENT


@kernel
def dequantize_q5_1(raw, out):
    """Block: d, m, 32 fifth bits, 16 bytes of the lower bits of codes."""
    raw, y = raw.ravel(), out.ravel()
    top = np.uint8(0)
    for b in range(y.size // BLOCK):
        block = 24 * b
        top = max(top, raw[block + 1] & EXPONENT, raw[block + 3] & EXPONENT)
        d, m = load_scale(raw, block), load_scale(raw, block + 2)
        low, high = _five_bit_codes(raw, block + 4)
        store(y, BLOCK * b, convert(low, F) * d + m)
        store(y, BLOCK * b + 16, convert(high, F) * d + m)
    return top == EXPONENT


@kernel
def dequantize_q8_0(raw, out):
    """Block: d, 32 int8 codes."""
    raw, y = raw.ravel(), out.ravel()
    top = np.uint8(0)
    for b in range(y.size // BLOCK):
        block = 34 * b
        top = max(top, raw[block + 1] & EXPONENT)
        d = load_scale(raw, block)
        store(y, BLOCK * b, convert(view(load(raw, block + 2, 16), np.int8), F) * d)
        store(y, BLOCK * b + 16, convert(view(load(raw, block + 18, 16), np.int8), F) * d)
    return top == EXPONENT


@kernel
def recode_q4_0(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // BLOCK):
        block = 18 * b
        d, codes = load_half(raw, block), load(raw, block + 2, 16)
        low = nearest_on_grid(load(x, BLOCK * b, 16), signed(codes & 15, 8), d, F(0), -8, 7)
        high = nearest_on_grid(load(x, BLOCK * b + 16, 16), signed(codes >> 4, 8), d, F(0), -8, 7)
        store(out, block + 2, convert(low + F(8), np.uint8) | convert(high + F(8), np.uint8) << 4)


@kernel
def recode_q4_1(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // BLOCK):
        block = 20 * b
        d, m, codes = load_half(raw, block), load_half(raw, block + 2), load(raw, block + 4, 16)
        low = nearest_on_grid(load(x, BLOCK * b, 16), convert(codes & 15, F), d, m, 0, 15)
        high = nearest_on_grid(load(x, BLOCK * b + 16, 16), convert(codes >> 4, F), d, m, 0, 15)
        store(out, block + 4, convert(low, np.uint8) | convert(high, np.uint8) << 4)


@kernel
def recode_q5_0(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // BLOCK):
        block = 22 * b
        d = load_half(raw, block)
        low, high = _five_bit_codes(raw, block + 2)
        new_low = nearest_on_grid(load(x, BLOCK * b, 16), signed(low, 16), d, F(0), -16, 15) + F(16)
        new_high = nearest_on_grid(load(x, BLOCK * b + 16, 16), signed(high, 16), d, F(0), -16, 15) + F(16)
        _store_five_bit_codes(out, block + 2, convert(new_low, np.int32), convert(new_high, np.int32))


@kernel
def recode_q5_1(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // BLOCK):
        block = 24 * b
        d, m = load_half(raw, block), load_half(raw, block + 2)
        low, high = _five_bit_codes(raw, block + 4)
        new_low = nearest_on_grid(load(x, BLOCK * b, 16), convert(low, F), d, m, 0, 31)
        new_high = nearest_on_grid(load(x, BLOCK * b + 16, 16), convert(high, F), d, m, 0, 31)
        _store_five_bit_codes(out, block + 4, convert(new_low, np.int32), convert(new_high, np.int32))


@kernel
def recode_q8_0(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // BLOCK):
        block = 34 * b
        d = load_half(raw, block)
        for half in range(2):
            at = block + 2 + 16 * half
            stored = convert(view(load(raw, at, 16), np.int8), F)
            codes = nearest_on_grid(load(x, BLOCK * b + 16 * half, 16), stored, d, F(0), -128, 127)
            store(out, at, view(convert(codes, np.int8), np.uint8))


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


@kernel
def quantize_weighted_q4_0(x, out, imatrix):
    values, raw, group = x.ravel(), out.ravel(), _group(x)
    for first_block in range(0, x.size // BLOCK, LANES):
        count = _weigh(group, x, imatrix, first_block)
        _search_symmetric(group, 8)
        for lane in range(count):
            start, block = BLOCK * (first_block + lane), 18 * (first_block + lane)
            low = _symmetric_codes(values, start, group.inverse[lane], 8)
            high = _symmetric_codes(values, start + 16, group.inverse[lane], 8)
            store_half(raw, block, group.scale[lane])
            store(raw, block + 2, convert(low | high << 4, np.uint8))


@kernel
def quantize_weighted_q4_1(x, out, imatrix):
    values, raw, group = x.ravel(), out.ravel(), _group(x)
    for first_block in range(0, x.size // BLOCK, LANES):
        count = _weigh(group, x, imatrix, first_block)
        _search_affine(group, 15)
        for lane in range(count):
            start, block = BLOCK * (first_block + lane), 20 * (first_block + lane)
            low = _affine_codes(values, start, group.inverse[lane], group.offset[lane], 15)
            high = _affine_codes(values, start + 16, group.inverse[lane], group.offset[lane], 15)
            store_half(raw, block, group.scale[lane])
            store_half(raw, block + 2, group.minimum[lane])
            store(raw, block + 4, convert(low | high << 4, np.uint8))


@kernel
def quantize_weighted_q5_0(x, out, imatrix):
    values, raw, group = x.ravel(), out.ravel(), _group(x)
    for first_block in range(0, x.size // BLOCK, LANES):
        count = _weigh(group, x, imatrix, first_block)
        _search_symmetric(group, 16)
        for lane in range(count):
            start, block = BLOCK * (first_block + lane), 22 * (first_block + lane)
            low = _symmetric_codes(values, start, group.inverse[lane], 16)
            high = _symmetric_codes(values, start + 16, group.inverse[lane], 16)
            store_half(raw, block, group.scale[lane])
            _store_five_bit_codes(raw, block + 2, low, high)


@kernel
def quantize_weighted_q5_1(x, out, imatrix):
    values, raw, group = x.ravel(), out.ravel(), _group(x)
    for first_block in range(0, x.size // BLOCK, LANES):
        count = _weigh(group, x, imatrix, first_block)
        _search_affine(group, 31)
        for lane in range(count):
            start, block = BLOCK * (first_block + lane), 24 * (first_block + lane)
            low = _affine_codes(values, start, group.inverse[lane], group.offset[lane], 31)
            high = _affine_codes(values, start + 16, group.inverse[lane], group.offset[lane], 31)
            store_half(raw, block, group.scale[lane])
            store_half(raw, block + 2, group.minimum[lane])
            _store_five_bit_codes(raw, block + 4, low, high)


class _Group(NamedTuple):
    """LANES blocks side by side: arrays of [32 * LANES] with value i of all blocks in a row, and of [LANES]."""

    row_square: NDArray[np.float32]  # mean of the squares of each row of the tensor
    values: NDArray[np.float32]
    weights: NDArray[np.float32]
    square: NDArray[np.float32]  # row_square of the row that a block belongs to
    codes: NDArray[np.float32]  # scratch of the search
    scale: NDArray[np.float32]
    minimum: NDArray[np.float32]
    inverse: NDArray[np.float32]  # codes are nearest(inverse * (x - offset))
    offset: NDArray[np.float32]


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


@inlined
def _group(x):
    return _Group(
        _row_squares(x),
        np.empty(BLOCK * LANES, F),
        np.empty(BLOCK * LANES, F),
        np.empty(LANES, F),
        np.empty(BLOCK * LANES, F),
        np.empty(LANES, F),
        np.empty(LANES, F),
        np.empty(LANES, F),
        np.empty(LANES, F),
    )


@inlined
def _row_squares(x):
    """The mean of the squares of each row, added up in order; four rows at once hide the latency of the additions."""
    rows, n = x.shape
    means = np.empty(rows, F)
    for r in range(0, rows, 4):
        r1, r2, r3 = min(r + 1, rows - 1), min(r + 2, rows - 1), min(r + 3, rows - 1)
        s0 = s1 = s2 = s3 = F(0)
        for i in range(n):
            s0 += x[r, i] * x[r, i]
            s1 += x[r1, i] * x[r1, i]
            s2 += x[r2, i] * x[r2, i]
            s3 += x[r3, i] * x[r3, i]
        means[r3], means[r2], means[r1], means[r] = s3 / F(n), s2 / F(n), s1 / F(n), s0 / F(n)
    return means


@inlined
def _weigh(group, x, imatrix, first_block):
    """Lay out the values and weights of LANES blocks; returns how many there are. Spare lanes repeat the last block."""
    per_row, blocks, values = x.shape[1] // BLOCK, x.size // BLOCK, x.ravel()
    for lane in range(LANES):
        block = min(first_block + lane, blocks - 1)
        column = block % per_row * BLOCK
        group.square[lane] = group.row_square[block // per_row]
        for i in range(BLOCK):
            group.values[i * LANES + lane] = values[block * BLOCK + i]
            group.weights[i * LANES + lane] = imatrix[column + i]
    weigh(group.values, 0, BLOCK, group.weights, load(group.square, 0, LANES), group.weights)
    return min(LANES, blocks - first_block)


@inlined
def _search_symmetric(group, top):
    scale, inverse = search_symmetric(group.values, 0, BLOCK, group.weights, 0, F(top))
    store(group.scale, 0, scale)
    store(group.inverse, 0, inverse)


@inlined
def _search_affine(group, top):
    scale, minimum, inverse, offset = search_affine(
        group.values, 0, BLOCK, group.weights, F(top), F(-0.9), F(0.05), 36, False, group.codes
    )
    store(group.scale, 0, scale)
    store(group.minimum, 0, minimum)
    store(group.inverse, 0, inverse)
    store(group.offset, 0, offset)


@inlined
def _symmetric_codes(values, start, inverse, top):
    """16 codes, shifted to begin at 0. In a block that counts as zero `inverse` is NaN and ggml's codes are 0."""
    factor = splat(inverse, 16)
    codes = nearest_between(load(values, start, 16) * factor, F(-top), F(top - 1)) + F(top)
    return convert(select(factor == factor, codes, F(0)), np.int32)


@inlined
def _affine_codes(values, start, inverse, offset, top):
    return convert(nearest_between((load(values, start, 16) - offset) * inverse, F(0), F(top)), np.int32)


def _codec(
    kind: TensorType,
    dequantize: Callable,
    quantize: Callable,
    weighted: Callable | None,
    recode: Callable,
    limit: int,
    *scales: int,
) -> Codec:
    """limit: of the values, in units of the largest scale.  scales: their places. `dequantize` returns whether some
    scale is NaN or infinite: blocks are so small that another look at each would take half as long again.
    """

    def checked(raw, out):
        return find_bad_half(raw.reshape(-1), kind.block_bytes, scales[0], scales[-1]) if dequantize(raw, out) else -1

    return Codec(
        kind,
        dequantize,
        quantize,
        weighted,
        limit=limit * HALF_MAX,
        scales=scales,
        checked=checked,
        grid=_GRIDS[kind],
        recode=recode,
    )


_GRIDS = {
    TensorType.Q4_0: Grid(0.30, 1.03),
    TensorType.Q4_1: Grid(0.28, 1.05),
    TensorType.Q5_0: Grid(0.15, 1.03),
    TensorType.Q5_1: Grid(0.135, 1.05),
    TensorType.Q8_0: Grid(0.019, 1.01),
}

CODECS = {
    kind: _codec(kind, *kernels, *limits)
    for kind, kernels, limits in (
        (TensorType.Q4_0, (dequantize_q4_0, quantize_q4_0, quantize_weighted_q4_0, recode_q4_0), (8, 0)),
        (TensorType.Q4_1, (dequantize_q4_1, quantize_q4_1, quantize_weighted_q4_1, recode_q4_1), (16, 0, 2)),
        (TensorType.Q5_0, (dequantize_q5_0, quantize_q5_0, quantize_weighted_q5_0, recode_q5_0), (16, 0)),
        (TensorType.Q5_1, (dequantize_q5_1, quantize_q5_1, quantize_weighted_q5_1, recode_q5_1), (32, 0, 2)),
        (TensorType.Q8_0, (dequantize_q8_0, quantize_q8_0, None, recode_q8_0), (128, 0)),
    )
}
