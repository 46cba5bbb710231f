"""Scale searches of the K-quants, one block in each lane of a vector.

ggml fits the scale of a block with serial float sums, which a compiler must not reorder, so its code runs scalar. Here
LANES blocks are searched side by side: each lane does ggml's operations in ggml's order, so every sum has ggml's bits,
while one instruction serves many blocks. Branches are selects.

Arrays are float32 [rows * LANES]: row i is value (or sub-block) i of all lanes. Codes are whole numbers in float32.

Source: `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants` and `make_qp_quants` of
`ggml-quants.c`, llama.cpp v0.5.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ggufmerge.quants.simd import absolute, convert, largest, load, select, splat, square_root, store, view

F, U = np.float32, np.uint32

LANES = 32  # two registers of AVX-512, four of AVX2: enough independent work to hide the latency of a sum
TOGETHER = 2  # blocks of a lane that `descend_symmetric` serves in turn
EMPTY = F(1e-15)  # GROUP_MAX_EPS: a block of smaller magnitudes counts as zero
MAGIC = F(12582912)  # 1.5 * 2**23: after adding it the mantissa ends in the nearest integer

# Parts of a kernel, which nothing else calls: without wrappers for calls from Python and C they compile a third faster.
_NO_WRAPPERS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inlined: Callable = njit(nogil=True, error_model="numpy", forceinline=True, **_NO_WRAPPERS)


@inlined
def row(array, i):
    return load(array, i * LANES, LANES)


@inlined
def set_row(array, i, vector):
    store(array, i * LANES, vector)


@inlined
def constant(value):
    return splat(F(value), LANES)


@inlined
def transpose(values, first, offset, n, x):
    """Values offset .. offset + n of the super-blocks from `first` on, to rows 0 .. n of x.

    values: all super-blocks, or one row of an importance matrix, whose super-blocks repeat. Lanes without a super-block
    of their own get some other one.
    """
    for i in range(0, n, 16):  # a cache line of values at a time
        block = first * 256 % values.size
        for lane in range(LANES):
            for u in range(16):
                x[(i + u) * LANES + lane] = values[block + offset + i + u]
            block = block + 256 if block + 256 < values.size else 0


@inlined
def nearest(v):
    """Integers nearest to a float vector, half to even; out of range (|v| > 2**22, infinite, NaN) what ggml's
    nearest_int makes of the bits.
    """
    return view(view(v + MAGIC, U) & U(0x7FFFFF) | U(0x4B000000), F) - MAGIC


@inlined
def nearest_between(v, low, high):
    """nearest(v), limited to low..high."""
    l = view(view(v + MAGIC, U) & U(0x7FFFFF) | U(0x4B000000), F)
    l = select(l < MAGIC + low, MAGIC + low, l)
    return select(l > MAGIC + high, MAGIC + high, l) - MAGIC


@inlined
def nearest_below(v, high):
    """nearest(v), limited to `high`."""
    l = nearest(v)
    return select(l > high, high, l)


@inlined
def as_byte(l):
    """Whole numbers as ggml stores them in a byte: modulo 256."""
    return convert(convert(l, np.int32) & np.int32(255), F)


@inlined
def mean_square(x, start, n, factor):
    """`factor` times the sum of the squares of rows start .. start + n, over n."""
    total = constant(0)
    for i in range(start, start + n):
        v = row(x, i)
        total = total + v * v
    return total * factor / F(n)


@inlined
def weigh(x, start, n, imatrix, variance, w):
    """Weights of values under an importance matrix, imatrix * sqrt(variance + x**2), to w; returns their sum."""
    total = constant(0)
    for i in range(n):
        v = row(x, start + i)
        weight = row(imatrix, i) * square_root(variance + v * v)
        set_row(w, i, weight)
        total = total + weight
    return total


@inlined
def extreme(x, start, n):
    """The largest magnitude of n rows, and the first value that has it."""
    amax, peak = constant(0), constant(0)
    for i in range(start, start + n):
        v = row(x, i)
        a = absolute(v)
        larger = a > amax
        amax, peak = select(larger, a, amax), select(larger, v, peak)
    return amax, peak


@inlined
def search_affine(x, start, n, w, top, first, delta, steps, linear, codes):
    """Scale and minimum of blocks with codes from 0 to `top` (make_qkx2_quants, make_qkx3_quants).

    Among steps + 1 grids of (top + first + delta * step) / range, each refined by least squares, the one with the
    smallest weighted squared (`linear`: absolute) error wins. Returns scale, minimum, and `inverse` and `offset`
    such that the codes of the winner are nearest(inverse * (x - offset)), limited. Blocks of equal values x <= 0 need
    no branch: their range of 0 makes codes and scale 0. `codes` is scratch of n rows.
    """
    lo, hi, sum_w = row(x, start), row(x, start), row(w, 0)
    sum_x = sum_w * lo
    for i in range(1, n):
        v, u = row(x, start + i), row(w, i)
        lo, hi = select(v < lo, v, lo), select(v > hi, v, hi)
        sum_w = sum_w + u
        sum_x = sum_x + u * v
    lo = select(lo > F(0), F(0), lo)
    inv = constant(top) / (hi - lo)
    scale, inverse, offset = constant(1) / inv, inv, lo
    for i in range(n):
        set_row(codes, i, nearest_between(inv * (row(x, start + i) - lo), F(0), top))
    best = _error(x, start, n, w, codes, scale, lo, linear)
    for step in range(steps + 1):
        # lo may be the minimum of an earlier winner: ggml goes on from there
        inv = constant(F(first + F(delta * F(step))) + top) / (hi - lo)
        sum_l, sum_l2, sum_xl = constant(0), constant(0), constant(0)
        for i in range(n):
            v, u = row(x, start + i), row(w, i)
            l = nearest_between(inv * (v - lo), F(0), top)
            set_row(codes, i, l)
            ul = u * l
            sum_l = sum_l + ul
            sum_l2 = sum_l2 + ul * l
            sum_xl = sum_xl + ul * v
        det = sum_w * sum_l2 - sum_l * sum_l
        a = (sum_w * sum_xl - sum_x * sum_l) / det
        b = (sum_l2 * sum_x - sum_l * sum_xl) / det
        a, b = select(b > F(0), sum_xl / sum_l2, a), select(b > F(0), F(0), b)
        error = _error(x, start, n, w, codes, a, b, linear)
        won = (det > F(0)) & (error < best)
        best, inverse, offset = select(won, error, best), select(won, inv, inverse), select(won, lo, offset)
        scale, lo = select(won, a, scale), select(won, b, lo)
    return scale, lo, inverse, offset


@inlined
def _error(x, start, n, w, codes, a, b, linear):
    """Weighted squared or absolute error of a * codes + b."""
    total = constant(0)
    for i in range(n):
        d = a * row(codes, i) + b - row(x, start + i)
        total = total + row(w, i) * (absolute(d) if linear else d * d)
    return total


@inlined
def search_symmetric(x, start, n, w, at, top):
    """Scale of blocks with codes from -top to top - 1 (make_qx_quants); weights are the rows of w from `at`.

    Of 19 grids around -top / (value of largest magnitude) the one with the best weighted fit wins. Returns the scale
    and `inverse`: the codes of the winner are nearest(inverse * x), limited. In a block that counts as zero the scale
    is 0 and `inverse` NaN, and ggml's codes are -top.
    """
    amax, peak = extreme(x, start, n)
    scale, inverse, best = constant(0), constant(0), constant(0)
    for trial in range(19):
        # the plain grid first, then steps of 0.1 from -0.9 to 0.9
        step = 0 if trial == 0 else trial - 10 if trial < 10 else trial - 9
        inv = constant(-(top + F(F(0.1) * F(step)))) / peak
        sum_xl, sum_l2 = constant(0), constant(0)
        for i in range(n):
            v, u = row(x, start + i), row(w, at + i)
            l = nearest_between(inv * v, -top, top - F(1))
            sum_xl = sum_xl + u * v * l
            sum_l2 = sum_l2 + u * l * l
        fit = sum_xl / sum_l2
        if trial == 0:
            scale, inverse = select(sum_l2 != F(0), fit, F(0)), inv
            best = scale * sum_xl
        else:
            won = (sum_l2 > F(0)) & (sum_xl * sum_xl > best * sum_l2)
            scale, best, inverse = select(won, fit, scale), select(won, fit * sum_xl, best), select(won, inv, inverse)
    empty = amax < EMPTY
    return select(empty, F(0), scale), select(empty, F(np.nan), inverse)


@inlined
def descend_symmetric(x, first, n, top, codes, scale, sums):
    """Scales and codes (0 to 2 * top - 1) of TOGETHER blocks of n values weighted by x**2, from block `first` on:
    coordinate descent from the plain grid (make_q3_quants). Writes rows of `codes` like those of x, and of `scale`.
    In a block that counts as zero both are 0.

    Each step of a descent waits for the division of the step before, so several blocks take turns. `sums` is scratch of
    2 * TOGETHER rows.
    """
    for b in range(TOGETHER):
        start = n * (first + b)
        amax, peak = extreme(x, start, n)
        inv = constant(-top) / peak
        sum_xl, sum_l2 = constant(0), constant(0)
        for i in range(start, start + n):
            v = row(x, i)
            l = nearest_between(inv * v, -top, top - F(1))
            set_row(codes, i, l)
            sum_xl = sum_xl + v * v * v * l
            sum_l2 = sum_l2 + v * v * l * l
        set_row(sums, b, sum_xl)
        set_row(sums, TOGETHER + b, sum_l2)
    for _ in range(5):
        changed = constant(0)
        for i in range(n * first, n * (first + 1)):
            for b in range(TOGETHER):
                v, l, sum_xl, sum_l2 = row(x, i + n * b), row(codes, i + n * b), row(sums, b), row(sums, TOGETHER + b)
                w = v * v
                xl, l2 = sum_xl - w * v * l, sum_l2 - w * l * l
                new = nearest_between(v * l2 / xl, -top, top - F(1))
                new_xl, new_l2 = xl + w * v * new, l2 + w * new * new
                better = new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
                won = (xl > F(0)) & (new != l) & (new_l2 > F(0)) & better
                set_row(codes, i + n * b, select(won, new, l))
                set_row(sums, b, select(won, new_xl, sum_xl))
                set_row(sums, TOGETHER + b, select(won, new_l2, sum_l2))
                changed = select(won, F(1), changed)
        if largest(changed) == F(0):
            break
    for b in range(TOGETHER):
        start, sum_xl, sum_l2 = n * (first + b), row(sums, b), row(sums, TOGETHER + b)
        amax, _ = extreme(x, start, n)
        empty = amax < EMPTY
        set_row(scale, first + b, select(empty, F(0), select(sum_l2 > F(0), sum_xl / sum_l2, F(0))))
        for i in range(start, start + n):
            set_row(codes, i, select(empty, F(0), row(codes, i) + top))


@inlined
def search_positive(x, n, w, top, codes):
    """Scale of blocks of values x >= 0 with codes from 0 to `top` (make_qp_quants): nine grids, coordinate descent.

    ggml keeps codes in bytes: a negative one (of an x below 0) takes part in the descent as 256 more.
    """
    peak = constant(0)
    for i in range(n):
        v = row(x, i)
        peak = select(peak > v, peak, v)
    inverse, best = constant(0), constant(0)
    for trial in range(9):
        # the plain grid first, then steps of 0.1 from -0.4 to 0.4
        step = 0 if trial == 0 else trial - 5 if trial < 5 else trial - 4
        inv = constant(F(F(0.1) * F(step)) + top) / peak
        unit = constant(1) / inv
        error = constant(0)
        for i in range(n):
            v = row(x, i)
            l = as_byte(nearest(inv * v)) if trial == 0 else nearest_below(inv * v, top)
            d = v - unit * l
            error = error + row(w, i) * d * d
        if trial == 0:
            best, inverse = error, inv
        else:
            won = error < best
            best, inverse = select(won, error, best), select(won, inv, inverse)
    sum_xl, sum_l2 = constant(0), constant(0)
    for i in range(n):
        v, u = row(x, i), row(w, i)
        l = nearest_below(inverse * v, top)
        set_row(codes, i, as_byte(l))
        sum_xl = sum_xl + u * v * l
        sum_l2 = sum_l2 + u * l * l
    for _ in range(5):
        changed = constant(0)
        for i in range(n):
            v, u, l = row(x, i), row(w, i), row(codes, i)
            xl, l2 = sum_xl - u * v * l, sum_l2 - u * l * l
            new = nearest_below(v * l2 / xl, top)
            new_xl, new_l2 = xl + u * v * new, l2 + u * new * new
            better = new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            won = (xl > F(0)) & (l2 > F(0)) & (new != l) & better
            set_row(codes, i, select(won, as_byte(new), l))
            sum_xl, sum_l2 = select(won, new_xl, sum_xl), select(won, new_l2, sum_l2)
            changed = select(won, F(1), changed)
        if largest(changed) == F(0):
            break
    empty = peak < EMPTY
    for i in range(n):
        set_row(codes, i, select(empty, F(0), row(codes, i)))
    return select(empty, F(0), select(sum_l2 > F(0), sum_xl / sum_l2, F(0)))
