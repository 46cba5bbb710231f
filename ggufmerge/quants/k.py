"""K-quants: Q2_K, Q3_K, Q4_K, Q5_K and Q6_K, super-blocks of 256 values in sub-blocks of 16 or 32.

A sub-block has its own scale (and in Q2_K, Q4_K, Q5_K its own minimum), stored as a small integer multiple of the
super-block's float16 scale `d` (and `dmin`). A value is `d * scale * code` or `d * scale * code - dmin * minimum`.

Quantizing fits the sub-blocks of LANES super-blocks side by side (`lanes.py`), expresses their scales as multiples of
d, and takes the codes that the stored scales call for.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.quants import lanes
from ggufmerge.quants.blocks import load_half, store_half
from ggufmerge.quants.codec import HALF_MAX, Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.lanes import LANES, constant, inlined, nearest, nearest_between, row, set_row
from ggufmerge.quants.nearest import nearest_on_grid, signed
from ggufmerge.quants.simd import absolute, convert, load, select, splat, square_root, store
from ggufmerge.types import TensorType

F, U8 = np.float32, np.uint8
SUPER = 256  # values of a super-block


@kernel
def dequantize_q2_k(raw, out):
    """Block: 16 bytes of scale (low) and minimum (high) nibbles, 64 of 2-bit codes, d, dmin."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // SUPER):
        block = 84 * b
        d, dmin = load_half(raw, block + 80), load_half(raw, block + 82)
        for h in range(2):
            for t in range(2):
                codes = load(raw, block + 16 + 32 * h + 16 * t, 16)
                for k in range(4):
                    s = 8 * h + 2 * k + t
                    scale, minimum = d * F(raw[block + s] & 15), dmin * F(raw[block + s] >> 4)
                    store(y, SUPER * b + 16 * s, convert(codes & 3, F) * scale - minimum)
                    codes = codes >> 2


@kernel
def dequantize_q3_k(raw, out):
    """Block: 32 bytes of high bits, 64 of low 2-bit codes, 12 of 6-bit scales, d."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // SUPER):
        block = 110 * b
        d = load_half(raw, block + 108)
        for t in range(2):
            high = load(raw, block + 16 * t, 16)
            for h in range(2):
                codes = load(raw, block + 32 + 32 * h + 16 * t, 16)
                for k in range(4):
                    s = 8 * h + 2 * k + t
                    scale = d * F(_scale_3bit(raw, block + 96, s))
                    code = codes & 3 | (high & 1) << 2
                    store(y, SUPER * b + 16 * s, (convert(code, F) - F(4)) * scale)
                    codes, high = codes >> 2, high >> 1


@kernel
def dequantize_q4_k(raw, out):
    """Block: d, dmin, 12 bytes of 6-bit scales and minima, 128 of 4-bit codes."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // SUPER):
        block = 144 * b
        d, dmin = load_half(raw, block), load_half(raw, block + 2)
        for pair in range(4):
            codes = load(raw, block + 16 + 32 * pair, 32)
            scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, 2 * pair)
            store(y, SUPER * b + 64 * pair, convert(codes & 15, F) * scale - minimum)
            scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, 2 * pair + 1)
            store(y, SUPER * b + 64 * pair + 32, convert(codes >> 4, F) * scale - minimum)


@kernel
def dequantize_q5_k(raw, out):
    """Block: d, dmin, 12 bytes of 6-bit scales and minima, 32 of high bits, 128 of low 4-bit codes."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // SUPER):
        block = 176 * b
        d, dmin = load_half(raw, block), load_half(raw, block + 2)
        high = load(raw, block + 16, 32)
        for pair in range(4):
            codes = load(raw, block + 48 + 32 * pair, 32)
            scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, 2 * pair)
            store(y, SUPER * b + 64 * pair, convert(codes & 15 | (high & 1) << 4, F) * scale - minimum)
            scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, 2 * pair + 1)
            store(y, SUPER * b + 64 * pair + 32, convert(codes >> 4 | (high & 2) << 3, F) * scale - minimum)
            high = high >> 2


@kernel
def dequantize_q6_k(raw, out):
    """Block: 128 bytes of low 4-bit codes, 64 of high 2-bit codes, 16 int8 scales, d."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // SUPER):
        block = 210 * b
        d = load_half(raw, block + 208)
        for h in range(2):
            for t in range(2):
                high = load(raw, block + 128 + 32 * h + 16 * t, 16)
                for k in range(4):
                    s = 8 * h + 2 * k + t
                    low = load(raw, block + 64 * h + 32 * (k % 2) + 16 * t, 16)
                    low = low & 15 if k < 2 else low >> 4
                    scale = d * F(np.int8(raw[block + 192 + s]))
                    store(y, SUPER * b + 16 * s, (convert(low | (high & 3) << 4, F) - F(32)) * scale)
                    high = high >> 2


@kernel
def recode_q2_k(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // SUPER):
        block = 84 * b
        d, dmin = load_half(raw, block + 80), load_half(raw, block + 82)
        for h in range(2):
            for t in range(2):
                at = block + 16 + 32 * h + 16 * t
                codes, packed = load(raw, at, 16), splat(U8(0), 16)
                for k in range(4):
                    s = 8 * h + 2 * k + t
                    scale, minimum = d * F(raw[block + s] & 15), dmin * F(raw[block + s] >> 4)
                    v = load(x, SUPER * b + 16 * s, 16)
                    packed = packed | _recoded(v, codes & 3, scale, minimum, 3) << (2 * k)
                    codes = codes >> 2
                store(out, at, packed)


@kernel
def recode_q3_k(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // SUPER):
        block = 110 * b
        d = load_half(raw, block + 108)
        for t in range(2):
            high, packed_high = load(raw, block + 16 * t, 16), splat(U8(0), 16)
            for h in range(2):
                at = block + 32 + 32 * h + 16 * t
                codes, packed = load(raw, at, 16), splat(U8(0), 16)
                for k in range(4):
                    s = 8 * h + 2 * k + t
                    scale, v = d * F(_scale_3bit(raw, block + 96, s)), load(x, SUPER * b + 16 * s, 16)
                    code = _recoded_symmetric(v, codes & 3 | (high & 1) << 2, scale, 4)
                    packed = packed | (code & 3) << (2 * k)
                    packed_high = packed_high | code >> 2 << (4 * h + k)
                    codes, high = codes >> 2, high >> 1
                store(out, at, packed)
            store(out, block + 16 * t, packed_high)


@kernel
def recode_q4_k(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // SUPER):
        block = 144 * b
        d, dmin = load_half(raw, block), load_half(raw, block + 2)
        for pair in range(4):
            at, values = block + 16 + 32 * pair, SUPER * b + 64 * pair
            codes = load(raw, at, 32)
            scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, 2 * pair)
            low = _recoded(load(x, values, 32), codes & 15, scale, minimum, 15)
            scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, 2 * pair + 1)
            high = _recoded(load(x, values + 32, 32), codes >> 4, scale, minimum, 15)
            store(out, at, low | high << 4)


@kernel
def recode_q5_k(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // SUPER):
        block = 176 * b
        d, dmin = load_half(raw, block), load_half(raw, block + 2)
        fifth, packed = load(raw, block + 16, 32), splat(U8(0), 32)
        for pair in range(4):
            at, values = block + 48 + 32 * pair, SUPER * b + 64 * pair
            codes = load(raw, at, 32)
            scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, 2 * pair)
            low = _recoded(load(x, values, 32), codes & 15 | (fifth & 1) << 4, scale, minimum, 31)
            scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, 2 * pair + 1)
            high = _recoded(load(x, values + 32, 32), codes >> 4 | (fifth & 2) << 3, scale, minimum, 31)
            packed = packed | low >> 4 << (2 * pair) | high >> 4 << (2 * pair + 1)
            store(out, at, low & 15 | high << 4)
            fifth = fifth >> 2
        store(out, block + 16, packed)


@kernel
def recode_q6_k(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // SUPER):
        block = 210 * b
        d = load_half(raw, block + 208)
        for h in range(2):
            for t in range(2):
                high, packed_high = load(raw, block + 128 + 32 * h + 16 * t, 16), splat(U8(0), 16)
                for side in range(2):
                    at = block + 64 * h + 32 * side + 16 * t
                    codes, packed = load(raw, at, 16), splat(U8(0), 16)
                    for nibble in range(2):
                        k = side + 2 * nibble
                        s = 8 * h + 2 * k + t
                        scale, v = d * F(np.int8(raw[block + 192 + s])), load(x, SUPER * b + 16 * s, 16)
                        stored = codes >> (4 * nibble) & 15 | (high >> (2 * k) & 3) << 4
                        code = _recoded_symmetric(v, stored, scale, 32)
                        packed = packed | (code & 15) << (4 * nibble)
                        packed_high = packed_high | code >> 4 << (2 * k)
                    store(out, at, packed)
                store(out, block + 128 + 32 * h + 16 * t, packed_high)


@kernel
def quantize_q2_k(x, out, imatrix=None):
    """Affine sub-blocks of 16; scales and minima are 4-bit multiples of d and dmin."""
    x, raw = x.ravel(), out.ravel()
    g = _affine_group(16)
    for first in range(0, x.size // SUPER, LANES):
        lanes.transpose(x, first, 0, SUPER, g.x)
        if imatrix is None:
            for s in range(16):
                for i in range(16):
                    set_row(g.w, i, absolute(row(g.x, 16 * s + i)))
                _search_affine(g, s, 16, F(3), F(-0.5), F(0.1), 15, True)
            set_row(g.d, 0, _levels_of_largest(g.scale, 16, F(15), F(255), g.level))
            set_row(g.dmin, 0, _levels_of_largest(g.minimum, 16, F(15), F(255), g.low))
        else:
            _fit_affine_weighted(g, first, imatrix, 16, F(3), F(1), F(15))
        for lane in range(min(LANES, x.size // SUPER - first)):
            block, values = 84 * (first + lane), SUPER * (first + lane)
            store_half(raw, block + 80, g.d[lane])
            store_half(raw, block + 82, g.dmin[lane])
            d, dmin = load_half(raw, block + 80), load_half(raw, block + 82)
            for s in range(16):
                raw[block + s] = U8(g.level[s * LANES + lane]) | U8(g.low[s * LANES + lane]) << 4
            for h in range(2):
                for t in range(2):
                    packed = splat(U8(0), 16)
                    for k in range(4):
                        s = 8 * h + 2 * k + t
                        scale, minimum = d * F(raw[block + s] & 15), dmin * F(raw[block + s] >> 4)
                        codes = _affine_codes(g, x, values + 16 * s, scale, minimum, s * LANES + lane, F(3))
                        packed = packed | codes << (2 * k)
                    store(raw, block + 16 + 32 * h + 16 * t, packed)


@kernel
def quantize_q3_k(x, out, imatrix=None):
    """Symmetric sub-blocks of 16; scales are 6-bit multiples of d."""
    x, raw = x.ravel(), out.ravel()
    g = _symmetric_group()
    for first in range(0, x.size // SUPER, LANES):
        lanes.transpose(x, first, 0, SUPER, g.x)
        if imatrix is None:
            for s in range(0, 16, lanes.TOGETHER):
                lanes.descend_symmetric(g.x, s, 16, F(4), g.w, g.scale, g.sum_w)
            void = _levels_of_extreme(g, F(-32), F(2.0**-149))
            for s in range(16):
                set_row(g.level, s, select(void, F(-32), row(g.level, s)))
        else:
            _fit_symmetric_weighted(g, first, imatrix)
        for lane in range(min(LANES, x.size // SUPER - first)):
            block, values = 110 * (first + lane), SUPER * (first + lane)
            store_half(raw, block + 108, g.d[lane])
            d = load_half(raw, block + 108)
            _store_scales_3bit(g, lane, raw, block + 96)
            for t in range(2):
                high = splat(U8(0), 16)
                for h in range(2):
                    packed = splat(U8(0), 16)
                    for k in range(4):
                        s = 8 * h + 2 * k + t
                        scale = d * F(_scale_3bit(raw, block + 96, s))
                        if imatrix is None and scale == F(0):
                            codes = _codes_of_descent(g, s, lane)
                        else:
                            codes = _symmetric_codes(g, x, values + 16 * s, scale, s * LANES + lane, F(4))
                        packed = packed | (codes & 3) << (2 * k)
                        high = high | codes >> 2 << (4 * h + k)
                    store(raw, block + 32 + 32 * h + 16 * t, packed)
                store(raw, block + 16 * t, high)


@kernel
def quantize_q4_k(x, out, imatrix=None):
    """Affine sub-blocks of 32; scales and minima are 6-bit multiples of d and dmin."""
    x, raw = x.ravel(), out.ravel()
    g = _affine_group(32)
    for first in range(0, x.size // SUPER, LANES):
        lanes.transpose(x, first, 0, SUPER, g.x)
        if imatrix is None:
            _fit_affine(g, F(15), F(-1), 20)
        else:
            _fit_affine_weighted(g, first, imatrix, 32, F(15), F(2), F(63))
        for lane in range(min(LANES, x.size // SUPER - first)):
            block, values = 144 * (first + lane), SUPER * (first + lane)
            d, dmin = _store_scales_and_minima(g, lane, F(255), raw, block)
            for pair in range(4):
                for t in range(2):
                    at = values + 64 * pair + 16 * t
                    low = _affine_codes_6bit(g, x, at, d, dmin, raw, block, 2 * pair, lane, F(15))
                    high = _affine_codes_6bit(g, x, at + 32, d, dmin, raw, block, 2 * pair + 1, lane, F(15))
                    store(raw, block + 16 + 32 * pair + 16 * t, low | high << 4)


@kernel
def quantize_q5_k(x, out, imatrix=None):
    """Affine sub-blocks of 32; scales and minima are 6-bit multiples of d and dmin."""
    x, raw = x.ravel(), out.ravel()
    g = _affine_group(32)
    for first in range(0, x.size // SUPER, LANES):
        lanes.transpose(x, first, 0, SUPER, g.x)
        if imatrix is None:
            _fit_affine(g, F(31), F(-0.5), 15)
        else:
            _fit_affine_weighted(g, first, imatrix, 32, F(31), F(2), F(63))
        for lane in range(min(LANES, x.size // SUPER - first)):
            block, values = 176 * (first + lane), SUPER * (first + lane)
            d, dmin = _store_scales_and_minima(g, lane, F(63), raw, block)
            for t in range(2):
                fifth = splat(U8(0), 16)
                for pair in range(4):
                    at = values + 64 * pair + 16 * t
                    low = _affine_codes_6bit(g, x, at, d, dmin, raw, block, 2 * pair, lane, F(31))
                    high = _affine_codes_6bit(g, x, at + 32, d, dmin, raw, block, 2 * pair + 1, lane, F(31))
                    fifth = fifth | low >> 4 << (2 * pair) | high >> 4 << (2 * pair + 1)
                    store(raw, block + 48 + 32 * pair + 16 * t, low & 15 | high << 4)
                store(raw, block + 16 + 16 * t, fifth)


@kernel
def quantize_q6_k(x, out, imatrix=None):
    """Symmetric sub-blocks of 16; scales are 8-bit multiples of d. The importance matrix is the weight as it is."""
    x, raw = x.ravel(), out.ravel()
    g = _symmetric_group()
    for first in range(0, x.size // SUPER, LANES):
        lanes.transpose(x, first, 0, SUPER, g.x)
        if imatrix is not None:
            lanes.transpose(imatrix, first, 0, SUPER, g.w)
        for s in range(16):
            at = 0 if imatrix is None else 16 * s
            if imatrix is None:
                for i in range(16):
                    set_row(g.w, i, row(g.x, 16 * s + i) * row(g.x, 16 * s + i))
            _search_symmetric(g, s, at, F(32))
        void = _levels_of_extreme(g, F(-128), lanes.EMPTY)
        for s in range(16):
            set_row(g.level, s, select(void, F(0), row(g.level, s)))
            set_row(g.inverse, s, select(void, F(np.nan), row(g.inverse, s)))
        for lane in range(min(LANES, x.size // SUPER - first)):
            block, values = 210 * (first + lane), SUPER * (first + lane)
            store_half(raw, block + 208, g.d[lane])
            for s in range(16):
                raw[block + 192 + s] = U8(np.int32(g.level[s * LANES + lane]) & 255)
            for h in range(2):
                for t in range(2):
                    q0 = _codes_q6(g, x, values, raw, block, 8 * h + t, lane)
                    q1 = _codes_q6(g, x, values, raw, block, 8 * h + t + 2, lane)
                    q2 = _codes_q6(g, x, values, raw, block, 8 * h + t + 4, lane)
                    q3 = _codes_q6(g, x, values, raw, block, 8 * h + t + 6, lane)
                    low, high = block + 64 * h + 16 * t, block + 128 + 32 * h + 16 * t
                    store(raw, low, q0 & 15 | q2 << 4)
                    store(raw, low + 32, q1 & 15 | q3 << 4)
                    store(raw, high, q0 >> 4 | q1 >> 4 << 2 | q2 >> 4 << 4 | q3 >> 4 << 6)


class _Affine(NamedTuple):
    """Work on a group of LANES super-blocks with scales and minima: rows of LANES values."""

    x: NDArray[np.float32]  # values, 256 rows
    w: NDArray[np.float32]  # weights of a sub-block
    codes: NDArray[np.float32]  # of a sub-block
    imatrix: NDArray[np.float32]  # of a sub-block
    scale: NDArray[np.float32]  # a row for each sub-block from here on
    minimum: NDArray[np.float32]  # what is subtracted
    inverse: NDArray[np.float32]  # the codes of the search are nearest(inverse * (x - offset))
    offset: NDArray[np.float32]
    sum_w: NDArray[np.float32]
    level: NDArray[np.float32]  # scales and minima as stored, 0..255
    low: NDArray[np.float32]
    d: NDArray[np.float32]  # one row
    dmin: NDArray[np.float32]


class _Symmetric(NamedTuple):
    """Work on a group of LANES super-blocks with scales only: rows of LANES values."""

    x: NDArray[np.float32]  # values, 256 rows
    w: NDArray[np.float32]  # weights or codes, up to 256 rows
    imatrix: NDArray[np.float32]  # of a sub-block
    scale: NDArray[np.float32]  # a row for each sub-block from here on
    inverse: NDArray[np.float32]  # the codes of the search are nearest(inverse * x)
    sum_w: NDArray[np.float32]
    level: NDArray[np.float32]  # scales as stored
    d: NDArray[np.float32]  # one row


@inlined
def _recoded(v, codes, scale, minimum, top):
    """Codes, uint8, of the values code * scale - minimum nearest to v."""
    return convert(nearest_on_grid(v, convert(codes, F), scale, -minimum, 0, top), U8)


@inlined
def _recoded_symmetric(v, codes, scale, top):
    """Codes, uint8, of the values (code - top) * scale nearest to v."""
    return convert(nearest_on_grid(v, signed(codes, top), scale, F(0), -top, top - 1) + F(top), U8)


@inlined
def _affine_group(n):
    """Memory for super-blocks with sub-blocks of n values."""
    s = SUPER // n
    return _Affine(
        x=_rows(SUPER),
        w=_rows(n),
        codes=_rows(n),
        imatrix=_rows(n),
        scale=_rows(s),
        minimum=_rows(s),
        inverse=_rows(s),
        offset=_rows(s),
        sum_w=_rows(s),
        level=_rows(s),
        low=_rows(s),
        d=_rows(1),
        dmin=_rows(1),
    )


@inlined
def _symmetric_group():
    """Memory for super-blocks with sub-blocks of 16 values."""
    return _Symmetric(
        x=_rows(SUPER),
        w=_rows(SUPER),
        imatrix=_rows(16),
        scale=_rows(16),
        inverse=_rows(16),
        sum_w=_rows(16),
        level=_rows(16),
        d=_rows(1),
    )


@inlined
def _rows(n):
    return np.empty(n * LANES, F)


@inlined
def _search_affine(g, s, n, top, first, delta, steps, linear):
    """Fit sub-block s of n values, whose weights are in g.w."""
    scale, lo, inverse, offset = lanes.search_affine(g.x, n * s, n, g.w, top, first, delta, steps, linear, g.codes)
    set_row(g.scale, s, scale)
    set_row(g.minimum, s, lo * F(-1))
    set_row(g.inverse, s, inverse)
    set_row(g.offset, s, offset)


@inlined
def _search_symmetric(g, s, at, top):
    """Fit sub-block s of 16 values, whose weights are the rows of g.w from `at`."""
    scale, inverse = lanes.search_symmetric(g.x, 16 * s, 16, g.w, at, top)
    set_row(g.scale, s, scale)
    set_row(g.inverse, s, inverse)


@inlined
def _fit_affine(g, top, first, steps):
    """Scales and minima of Q4_K and Q5_K: the weight is the magnitude plus the root mean square of the sub-block."""
    for s in range(8):
        mean = square_root(lanes.mean_square(g.x, 32 * s, 32, F(1)))
        for i in range(32):
            set_row(g.w, i, mean + absolute(row(g.x, 32 * s + i)))
        _search_affine(g, s, 32, top, first, F(0.1), steps, False)
    set_row(g.d, 0, _levels_of_largest(g.scale, 8, F(63), F(63), g.level))
    set_row(g.dmin, 0, _levels_of_largest(g.minimum, 8, F(63), F(63), g.low))


@inlined
def _fit_affine_weighted(g, first, imatrix, n, top, factor, levels):
    """Scales and minima of Q2_K, Q4_K and Q5_K under an importance matrix."""
    variance = lanes.mean_square(g.x, 0, SUPER, factor)
    for s in range(SUPER // n):
        lanes.transpose(imatrix, first, n * s, n, g.imatrix)
        set_row(g.sum_w, s, lanes.weigh(g.x, n * s, n, g.imatrix, variance, g.w))
        _search_affine(g, s, n, top, F(-0.9), F(0.05), 36, False)
    set_row(g.d, 0, lanes.search_positive(g.scale, SUPER // n, g.sum_w, levels, g.level))
    set_row(g.dmin, 0, lanes.search_positive(g.minimum, SUPER // n, g.sum_w, levels, g.low))


@inlined
def _fit_symmetric_weighted(g, first, imatrix):
    """Scales of Q3_K under an importance matrix, and by the same search their 6-bit levels."""
    variance = lanes.mean_square(g.x, 0, SUPER, F(2))
    for s in range(16):
        lanes.transpose(imatrix, first, 16 * s, 16, g.imatrix)
        set_row(g.sum_w, s, lanes.weigh(g.x, 16 * s, 16, g.imatrix, variance, g.w))
        _search_symmetric(g, s, 0, F(4))
    d, inverse = lanes.search_symmetric(g.scale, 0, 16, g.sum_w, 0, F(32))
    set_row(g.d, 0, d)
    for s in range(16):
        level = nearest_between(inverse * row(g.scale, s), F(-32), F(31))
        set_row(g.level, s, select(inverse == inverse, level, F(-32)))


@inlined
def _levels_of_largest(values, n, top, most, levels):
    """Express n rows of values as multiples, at most `most`, of their largest / top. Returns the unit."""
    peak = constant(0)
    for s in range(n):
        peak = select(row(values, s) > peak, row(values, s), peak)
    inverse = select(peak > F(0), constant(top) / peak, F(0))
    for s in range(n):
        level = lanes.as_byte(nearest(inverse * row(values, s)))
        set_row(levels, s, select(level > most, most, level))
    return peak / top


@inlined
def _levels_of_extreme(g, bottom, empty):
    """Express the 16 scales as multiples, from `bottom` up, of the one of largest magnitude / bottom, in g.d and
    g.level. Returns the mask of lanes without any magnitude of `empty`, where d is 0 and the levels mean nothing.
    """
    amax, peak = lanes.extreme(g.scale, 0, 16)
    inverse = constant(bottom) / peak
    set_row(g.d, 0, select(amax < empty, F(0), constant(1) / inverse))
    for s in range(16):
        level = nearest(inverse * row(g.scale, s))
        # an infinite product, of scales that are subnormal, has ended in bits that ggml cuts to a zero byte
        level = select(level < F(2) * bottom, F(0), level)
        set_row(g.level, s, nearest_between(level, bottom, -bottom - F(1)))
    return amax < empty


@inlined
def _affine_codes(g, x, at, scale, minimum, index, top):
    """Codes of 16 values for a stored scale and minimum; where the scale is 0 those of the search, `index` in g."""
    v = load(x, at, 16)
    v = (v + minimum) / scale if scale != F(0) else (v - g.offset[index]) * g.inverse[index]
    return convert(nearest_between(v, F(0), top), U8)


@inlined
def _affine_codes_6bit(g, x, at, d, dmin, raw, block, s, lane, top):
    """Codes of 16 values of sub-block s of Q4_K or Q5_K."""
    scale, minimum = _scale_and_minimum(d, dmin, raw, block + 4, s)
    return _affine_codes(g, x, at, scale, minimum, s * LANES + lane, top)


@inlined
def _symmetric_codes(g, x, at, scale, index, top):
    """Codes, plus top, of 16 values for a stored scale; where the scale is 0 those of the search, `index` in g."""
    v, inverse = load(x, at, 16), g.inverse[index]
    if scale != F(0):
        v = v / scale
    elif inverse == inverse:
        v = v * inverse
    else:
        v = splat(-top, 16)
    return convert(nearest_between(v, -top, top - F(1)) + top, U8)


@inlined
def _codes_q6(g, x, values, raw, block, s, lane):
    scale = load_half(raw, block + 208) * F(np.int8(raw[block + 192 + s]))
    return _symmetric_codes(g, x, values + 16 * s, scale, s * LANES + lane, F(32))


@inlined
def _codes_of_descent(g, s, lane):
    """Codes that the search of Q3_K left in g.w for sub-block s."""
    codes = np.empty(16, F)
    for i in range(16):
        codes[i] = g.w[(16 * s + i) * LANES + lane]
    return convert(load(codes, 0, 16), U8)


@inlined
def _store_scales_and_minima(g, lane, most, raw, block):
    """Write d, dmin and the 12 bytes of levels of Q4_K and Q5_K, none above `most`. Returns d and dmin as stored."""
    store_half(raw, block, g.d[lane])
    store_half(raw, block + 2, g.dmin[lane])
    packed = block + 4
    for s in range(8):
        scale = U8(min(g.level[s * LANES + lane], most))
        minimum = U8(min(g.low[s * LANES + lane], most))
        if s < 4:
            raw[packed + s], raw[packed + s + 4] = scale, minimum
        else:
            raw[packed + s + 4] = scale & 15 | minimum << 4
            raw[packed + s - 4] |= scale >> 4 << 6
            raw[packed + s] |= minimum >> 4 << 6
    return load_half(raw, block), load_half(raw, block + 2)


@inlined
def _scale_and_minimum(d, dmin, raw, at, s):
    """Scale and minimum of sub-block s of Q4_K and Q5_K from the 12 bytes at `at`."""
    if s < 4:
        scale, minimum = raw[at + s] & 63, raw[at + s + 4] & 63
    else:
        scale = raw[at + s + 4] & 15 | raw[at + s - 4] >> 6 << 4
        minimum = raw[at + s + 4] >> 4 | raw[at + s] >> 6 << 4
    return d * F(scale), dmin * F(minimum)


@inlined
def _store_scales_3bit(g, lane, raw, at):
    """Write the 12 bytes of scales of Q3_K."""
    for i in range(12):
        raw[at + i] = 0
    for s in range(16):
        level = U8(g.level[s * LANES + lane] + F(32))
        raw[at + s % 8] |= (level & 15) << (4 * (s // 8))
        raw[at + 8 + s % 4] |= level >> 4 << (2 * (s // 4))


@inlined
def _scale_3bit(raw, at, s):
    """Scale of sub-block s of Q3_K, -32..31, from the 12 bytes at `at`."""
    low = (raw[at + s % 8] >> (4 * (s // 8))) & 15
    high = (raw[at + 8 + s % 4] >> (2 * (s // 4))) & 3
    return np.int32(low | high << 4) - 32


CODECS: dict[TensorType, Codec] = {
    kind: Codec(kind, dequantize, quantize, quantize, limit=limit * HALF_MAX, scales=scales, grid=grid, recode=recode)
    for kind, (dequantize, quantize, recode), limit, scales, grid in (
        (TensorType.Q2_K, (dequantize_q2_k, quantize_q2_k, recode_q2_k), 60, (80, 82), Grid(1.15, 1.22)),
        (TensorType.Q3_K, (dequantize_q3_k, quantize_q3_k, recode_q3_k), 128, (108,), Grid(0.54, 1.09)),
        (TensorType.Q4_K, (dequantize_q4_k, quantize_q4_k, recode_q4_k), 1008, (0, 2), Grid(0.28, 1.05)),
        (TensorType.Q5_K, (dequantize_q5_k, quantize_q5_k, recode_q5_k), 2016, (0, 2), Grid(0.135, 1.05)),
        (TensorType.Q6_K, (dequantize_q6_k, quantize_q6_k, recode_q6_k), 4096, (208,), Grid(0.069, 1.02)),
    )
}
