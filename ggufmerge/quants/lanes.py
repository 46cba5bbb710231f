"""Scale searches of the K-quants, one block per SIMD lane.

ggml fits the scale of a block with serial float sums that a compiler must not reorder, so its code runs scalar. Here
a group of LANES blocks is transposed to `[values, LANES]` and every inner loop runs over the lanes: each lane does
ggml's operations in ggml's order, so each sum has ggml's bits, while the compiler vectorizes across lanes.

The arrays are float32 `[n, LANES]` (values, weights, codes) or `[LANES]` (one number per block). Branches are selects.
`tmp` is scratch of at least TMP rows. Nothing here may be reordered, fused or contracted.

Source: `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants` and `make_qp_quants` of
`ggml-quants.c`, llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np
from numba import config, njit

F, U = np.float32, np.uint32

# 64 lanes keep the tile of a 32-value block in the first-level cache; without the JIT one lane wastes no padding.
LANES = 1 if config.DISABLE_JIT else 64
UNROLL = 8  # values added per visit of a lane, so that running sums stay in registers
TMP = 12

EMPTY = F(1e-15)  # GROUP_MAX_EPS: a block whose largest magnitude is below counts as zero
MAGIC = F(12582912.0)  # 1.5 * 2**23: adding it leaves the nearest integer in the mantissa

inline = njit(nogil=True, error_model="numpy", forceinline=True)


@inline
def nearest(v):
    """The integer nearest to v, half to even, as float32; out of range (|v| > 2**22, infinite, NaN) what ggml's
    nearest_int makes of the bits.
    """
    return U((F(v + MAGIC).view(np.uint32) & U(0x7FFFFF)) | U(0x4B000000)).view(np.float32) - MAGIC


@inline
def clamp(v, low, high):
    v = low if v < low else v
    return high if v > high else v


@inline
def load(blocks, first, x):
    """Transpose the blocks from `first` on, [count, n], to x [n, LANES]; missing blocks repeat the last one."""
    last = blocks.shape[0] - 1
    for i in range(0, blocks.shape[1], 16):
        for j in range(LANES):
            block = blocks[min(first + j, last)]
            for u in range(16):
                x[i + u, j] = block[i + u]


@inline
def load_cyclic(blocks, first, start, x):
    """Values `start` and following of blocks taken in turn, to x: lane j gets block (first + j) modulo their number."""
    count = blocks.shape[0]
    for i in range(0, x.shape[0], 16):
        for j in range(LANES):
            block = blocks[(first + j) % count]
            for u in range(16):
                x[i + u, j] = block[start + i + u]


@inline
def mean_square(x, factor, out):
    """`factor` (1 or 2) times the sum of the squares of each lane, over the number of values."""
    n = x.shape[0]
    for j in range(LANES):
        out[j] = F(0)
    for i in range(0, n, UNROLL):
        for j in range(LANES):
            total = out[j]
            for u in range(UNROLL):
                total += x[i + u, j] * x[i + u, j]
            out[j] = total
    for j in range(LANES):
        out[j] = factor * out[j] / F(n)


@inline
def largest(x, amax, peak):
    """The largest magnitude of each lane, and the first value that has it."""
    for j in range(LANES):
        amax[j] = peak[j] = F(0)
    for i in range(x.shape[0]):
        for j in range(LANES):
            v = x[i, j]
            a = abs(v)
            peak[j] = v if a > amax[j] else peak[j]
            amax[j] = a if a > amax[j] else amax[j]


@inline
def importance(x, imatrix, variance, w, sum_w):
    """Weights of values under an importance matrix, imatrix * sqrt(variance + x**2), and their sum."""
    for j in range(LANES):
        sum_w[j] = F(0)
    for i in range(x.shape[0]):
        for j in range(LANES):
            weight = imatrix[i, j] * np.sqrt(variance[j] + x[i, j] * x[i, j])
            w[i, j] = weight
            sum_w[j] += weight


@inline
def search_affine(x, w, top, first, delta, steps, absolute, codes, tmp, scale, minimum, inverse, offset):
    """Scale and negated minimum of blocks whose codes run from 0 to `top` (make_qkx2_quants, make_qkx3_quants).

    Least squares over steps + 1 candidate grids of (top + first + delta * step) / range, the one with the smallest
    weighted squared (or `absolute`) error wins. The codes of the winner are nearest(inverse * (x - offset)), clamped.
    A block of equal values x <= 0 needs no branch: its range of 0 makes every code and the scale 0.
    """
    n = x.shape[0]
    lo, hi, sum_w, sum_x, best, inv = tmp[0], tmp[1], tmp[2], tmp[3], tmp[4], tmp[5]
    sum_l, sum_l2, sum_xl, error, a, b = tmp[6], tmp[7], tmp[8], tmp[9], tmp[10], tmp[11]
    zero, one = F(0), F(1)
    for j in range(LANES):
        lo[j] = hi[j] = x[0, j]
        sum_w[j] = w[0, j]
        sum_x[j] = w[0, j] * x[0, j]
    for i in range(1, n):
        for j in range(LANES):
            v, u = x[i, j], w[i, j]
            lo[j] = v if v < lo[j] else lo[j]
            hi[j] = v if v > hi[j] else hi[j]
            sum_w[j] += u
            sum_x[j] += u * v
    for j in range(LANES):
        lo[j] = zero if lo[j] > zero else lo[j]
        inv[j] = top / (hi[j] - lo[j])
        scale[j] = one / inv[j]
        inverse[j], offset[j] = inv[j], lo[j]
        a[j], b[j] = scale[j], lo[j]
        best[j] = zero
    for i in range(n):
        for j in range(LANES):
            codes[i, j] = clamp(nearest(inv[j] * (x[i, j] - lo[j])), zero, top)
    _add_error(x, w, codes, a, b, absolute, best)
    for step in range(steps + 1):
        numerator = F(first + F(delta * F(step))) + top
        for j in range(LANES):
            # lo may be the minimum of an earlier winner: ggml keeps searching from there
            inv[j] = numerator / (hi[j] - lo[j])
            sum_l[j] = sum_l2[j] = sum_xl[j] = zero
        for i in range(0, n, UNROLL):
            for j in range(LANES):
                k, m = inv[j], lo[j]
                s0, s1, s2 = sum_l[j], sum_l2[j], sum_xl[j]
                for u in range(UNROLL):
                    l = clamp(nearest(k * (x[i + u, j] - m)), zero, top)
                    codes[i + u, j] = l
                    wl = w[i + u, j] * l
                    s0 += wl
                    s1 += wl * l
                    s2 += wl * x[i + u, j]
                sum_l[j], sum_l2[j], sum_xl[j] = s0, s1, s2
        for j in range(LANES):
            det = sum_w[j] * sum_l2[j] - sum_l[j] * sum_l[j]
            slope = (sum_w[j] * sum_xl[j] - sum_x[j] * sum_l[j]) / det
            start = (sum_l2[j] * sum_x[j] - sum_l[j] * sum_xl[j]) / det
            a[j] = sum_xl[j] / sum_l2[j] if start > zero else slope
            b[j] = zero if start > zero else start
            error[j] = zero if det > zero else F(np.inf)
        _add_error(x, w, codes, a, b, absolute, error)
        for j in range(LANES):
            won = error[j] < best[j]
            best[j] = error[j] if won else best[j]
            inverse[j] = inv[j] if won else inverse[j]
            offset[j] = lo[j] if won else offset[j]
            scale[j] = a[j] if won else scale[j]
            lo[j] = b[j] if won else lo[j]
    for j in range(LANES):
        minimum[j] = -lo[j]


@inline
def _add_error(x, w, codes, a, b, absolute, error):
    """Add the weighted squared or absolute errors of a * code + b to `error`."""
    for i in range(0, x.shape[0], UNROLL):
        for j in range(LANES):
            total = error[j]
            for u in range(UNROLL):
                d = a[j] * codes[i + u, j] + b[j] - x[i + u, j]
                total += w[i + u, j] * (abs(d) if absolute else d * d)
            error[j] = total


@inline
def search_symmetric(x, w, top, tmp, scale, inverse):
    """Scale of blocks whose codes run from -top to top - 1 (make_qx_quants with weights).

    Of 19 grids around -top / (value of largest magnitude) the one with the best weighted fit wins. The codes of the
    winner are nearest(inverse * x), clamped, plus top; where the block counts as zero they are 0 and `inverse` is NaN.
    """
    n = x.shape[0]
    amax, peak, inv, sum_lx, sum_l2, best = tmp[0], tmp[1], tmp[2], tmp[3], tmp[4], tmp[5]
    zero, low, high = F(0), -top, top - F(1)
    largest(x, amax, peak)
    for trial in range(19):
        # the plain grid first, then 0.1 steps from -0.9 to 0.9
        offset = F(0) if trial == 0 else F(0.1) * F(trial - 10 if trial < 10 else trial - 9)
        numerator = -(top + offset)
        for j in range(LANES):
            inv[j] = numerator / peak[j]
            sum_lx[j] = sum_l2[j] = zero
        for i in range(0, n, UNROLL):
            for j in range(LANES):
                k, s0, s1 = inv[j], sum_lx[j], sum_l2[j]
                for u in range(UNROLL):
                    l = clamp(nearest(k * x[i + u, j]), low, high)
                    s0 += w[i + u, j] * x[i + u, j] * l
                    s1 += w[i + u, j] * l * l
                sum_lx[j], sum_l2[j] = s0, s1
        if trial == 0:
            for j in range(LANES):
                scale[j] = sum_lx[j] / sum_l2[j] if sum_l2[j] != zero else zero
                best[j] = scale[j] * sum_lx[j]
                inverse[j] = inv[j]
        else:
            for j in range(LANES):
                won = (sum_l2[j] > zero) & (sum_lx[j] * sum_lx[j] > best[j] * sum_l2[j])
                fit = sum_lx[j] / sum_l2[j]
                scale[j] = fit if won else scale[j]
                best[j] = fit * sum_lx[j] if won else best[j]
                inverse[j] = inv[j] if won else inverse[j]
    for j in range(LANES):
        scale[j] = zero if amax[j] < EMPTY else scale[j]
        inverse[j] = F(np.nan) if amax[j] < EMPTY else inverse[j]


@inline
def descend_symmetric(x, top, tmp, codes, scale):
    """Scale and codes (0 to 2 * top - 1) of blocks weighted by x**2: coordinate descent from the plain grid
    (make_q3_quants). A block that counts as zero gets codes 0 and scale 0.
    """
    n = x.shape[0]
    amax, peak, inv, sum_lx, sum_l2 = tmp[0], tmp[1], tmp[2], tmp[3], tmp[4]
    zero, low, high = F(0), -top, top - F(1)
    largest(x, amax, peak)
    for j in range(LANES):
        inv[j] = low / peak[j]
        sum_lx[j] = sum_l2[j] = zero
    for i in range(n):
        for j in range(LANES):
            v = x[i, j]
            w = v * v
            l = clamp(nearest(inv[j] * v), low, high)
            codes[i, j] = l
            sum_lx[j] += w * v * l
            sum_l2[j] += w * l * l
    for _ in range(5):
        changed = 0
        for i in range(n):
            for j in range(LANES):
                v, l = x[i, j], codes[i, j]
                w = v * v
                lx = sum_lx[j] - w * v * l
                l2 = sum_l2[j] - w * l * l
                new = clamp(nearest(v * l2 / lx), low, high)
                new_lx = lx + w * v * new
                new_l2 = l2 + w * new * new
                better = new_lx * new_lx * sum_l2[j] > sum_lx[j] * sum_lx[j] * new_l2
                won = (lx > zero) & (new != l) & (new_l2 > zero) & better
                codes[i, j] = new if won else l
                sum_lx[j] = new_lx if won else sum_lx[j]
                sum_l2[j] = new_l2 if won else sum_l2[j]
                changed += won
        if changed == 0:
            break
    for j in range(LANES):
        scale[j] = sum_lx[j] / sum_l2[j] if (sum_l2[j] > zero) & (amax[j] >= EMPTY) else zero
    for i in range(n):
        for j in range(LANES):
            codes[i, j] = zero if amax[j] < EMPTY else codes[i, j] + top


@inline
def search_positive(x, w, top, tmp, codes, scale):
    """Scale of blocks of values x >= 0 with codes 0 to `top` (make_qp_quants): nine grids, then coordinate descent.

    Codes are bytes in ggml, so a negative one (from an x a little below 0) continues as 256 more.
    """
    n = x.shape[0]
    peak, inv, inverse, unit = tmp[0], tmp[1], tmp[2], tmp[3]
    error, best, sum_lx, sum_l2 = tmp[4], tmp[5], tmp[6], tmp[7]
    zero, one = F(0), F(1)
    for j in range(LANES):
        peak[j] = zero
    for i in range(n):
        for j in range(LANES):
            peak[j] = peak[j] if peak[j] > x[i, j] else x[i, j]
    for trial in range(9):
        # the plain grid first, then 0.1 steps from -0.4 to 0.4
        offset = F(0) if trial == 0 else F(0.1) * F(trial - 5 if trial < 5 else trial - 4)
        for j in range(LANES):
            inv[j] = (offset + top) / peak[j]
            unit[j] = one / inv[j]
            error[j] = zero
        for i in range(n):
            for j in range(LANES):
                l = nearest(inv[j] * x[i, j])
                l = byte(l) if trial == 0 else _at_most(l, top)
                d = x[i, j] - unit[j] * l
                error[j] += w[i, j] * d * d
        for j in range(LANES):
            won = (trial == 0) | (error[j] < best[j])
            best[j] = error[j] if won else best[j]
            inverse[j] = inv[j] if won else inverse[j]
    for j in range(LANES):
        sum_lx[j] = sum_l2[j] = zero
    for i in range(n):
        for j in range(LANES):
            l = _at_most(nearest(inverse[j] * x[i, j]), top)
            codes[i, j] = byte(l)
            sum_lx[j] += w[i, j] * x[i, j] * l
            sum_l2[j] += w[i, j] * l * l
    for _ in range(5):
        changed = 0
        for i in range(n):
            for j in range(LANES):
                v, u, l = x[i, j], w[i, j], codes[i, j]
                lx = sum_lx[j] - u * v * l
                l2 = sum_l2[j] - u * l * l
                new = _at_most(nearest(v * l2 / lx), top)
                new_lx = lx + u * v * new
                new_l2 = l2 + u * new * new
                better = new_lx * new_lx * sum_l2[j] > sum_lx[j] * sum_lx[j] * new_l2
                won = (lx > zero) & (l2 > zero) & (new != l) & better
                codes[i, j] = byte(new) if won else l
                sum_lx[j] = new_lx if won else sum_lx[j]
                sum_l2[j] = new_l2 if won else sum_l2[j]
                changed += won
        if changed == 0:
            break
    for j in range(LANES):
        scale[j] = sum_lx[j] / sum_l2[j] if (sum_l2[j] > zero) & (peak[j] >= EMPTY) else zero
    for i in range(n):
        for j in range(LANES):
            codes[i, j] = zero if peak[j] < EMPTY else codes[i, j]


@inline
def _at_most(v, high):
    return high if v > high else v


@inline
def byte(l):
    """An integer modulo 256, as float32."""
    return F(np.int32(l) & np.int32(255))
