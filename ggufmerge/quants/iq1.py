"""IQ1_S and IQ1_M: groups of eight values are one of 2048 points of {-1, 0, 1}, shifted by 1/8 up or down.

Super-blocks of 256 values with a float16 scale `d`. IQ1_S has a 3-bit scale and one shift for each 32 values, IQ1_M a
3-bit scale for each 16 and a shift for each 8; IQ1_M scatters the bits of `d` over its scales.

Source: `ggml-common.h` (layouts) and `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ggufmerge.kernels import kernel
from ggufmerge.quants import grids
from ggufmerge.quants.blocks import load_half, store_half
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.half import float_to_half, half_to_float, inlined
from ggufmerge.quants.iq import (
    FLT_MAX,
    LANES,
    best_neighbour,
    codec,
    inline,
    negate,
    quantize_scales,
    sum_squares,
    transpose,
    untranspose,
    weigh,
    zeros,
)
from ggufmerge.quants.nearest_points import Groups, load_8, recode_blocks
from ggufmerge.quants.simd import absolute, any_set, convert, load, select, splat, store, view
from ggufmerge.types import TensorType

F, I = np.float32, np.int32
SHIFT = F(0.125)
SHIFTED, BOTH_SHIFTS = Groups(8, 1, False, SHIFT, False), Groups(8, 1, False, SHIFT, True)


@kernel
def _dequantize_iq1_s(raw, out, points):
    """Block: d, 32 bytes of grid indices, 8 little-endian half-words: 4 times 3 high index bits, 3 bits of scale, sign
    of the shift.
    """
    raw, y, points = raw.ravel(), out.ravel(), points.ravel()
    for b in range(y.size // 256):
        block = 50 * b
        d = load_half(raw, block)
        for s in range(8):
            high, scale = _part_iq1_s(raw, block, d, 4 * s)
            for k in range(4 * s, 4 * s + 4):
                _write_iq1_s(raw, block, k, high, scale, points, y, 256 * b + 8 * k)


@kernel
def _dequantize_iq1_m(raw, out, points):
    """Block: 32 bytes of grid indices, 16 of nibbles (3 high index bits, sign of shift), 4 little-endian half-words:
    4 times 3 bits of scale and 4 bits of d.
    """
    raw, y, points = raw.ravel(), out.ravel(), points.ravel()
    for b in range(y.size // 256):
        block = 56 * b
        d = _scale_iq1_m(raw, block)
        for s in range(16):
            high, scale = _part_iq1_m(raw, block, d, 2 * s)
            for k in range(2 * s, 2 * s + 2):
                _write_iq1_m(raw, block, k, high, scale, points, y, 256 * b + 8 * k)


@kernel
def _recode_iq1_s(raw, x, out, points, levels, halves):
    """The shift stays: 32 values share it."""
    raw, x, out, points = raw.ravel(), x.ravel(), out.ravel(), points.ravel()
    book = points, levels, halves
    recode_blocks(raw, x, out, book, SHIFTED, load_8, 50, load_half, _part_iq1_s, _write_iq1_s, points, _store_iq1_s)


@inlined
def _store_iq1_s(out, group, point, signs, found):
    block, k = 50 * (group // 32), group % 32
    at, place = block + 34 + 2 * (k // 4), 3 * (k % 4)
    high = I(out[at]) | I(out[at + 1]) << 8
    high = high & ~(7 << place) | point[0] >> 8 << place
    out[block + 2 + k] = point[0] & 255
    out[at] = high & 255
    out[at + 1] = high >> 8


@kernel
def _recode_iq1_m(raw, x, out, points, levels, halves):
    """Each group chooses the shift, its own, together with the point."""
    raw, x, out, points = raw.ravel(), x.ravel(), out.ravel(), points.ravel()
    book = points, levels, halves
    recode_blocks(
        raw, x, out, book, BOTH_SHIFTS, load_8, 56, _scale_iq1_m, _part_iq1_m, _write_iq1_m, points, _store_iq1_m
    )


@inlined
def _store_iq1_m(out, group, point, signs, found):
    block, k = 56 * (group // 32), group % 32
    at, place = block + 32 + k // 2, 4 * (k % 2)
    nibble = point[0] >> 8 | (found - 1) << 3
    out[block + k] = point[0] & 255
    out[at] = out[at] & ~(15 << place) | nibble << place


@kernel
def _quantize_iq1_s(x, out, imatrix, point, span, neighbours):
    """x: float32 [blocks * 256], out: uint8 [blocks * 50], imatrix: float32 [n of a row]."""
    blocks, arrays = x.size // 256, _block_arrays()
    values, weights, codes, _ = arrays
    scales, down, steps = np.empty(8 * LANES, F), np.empty(8 * LANES, I), np.empty(8 * LANES, I)
    largest = np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        _load_blocks(x, imatrix, first, blocks, values, weights)
        largest_scale = zeros()
        for s in range(8):
            empty = _largest_magnitude(values, 32 * s, 32) < F(1e-12)
            scale, choice = _search_split(arrays, 32 * s, 32, empty, span, neighbours)
            store(scales, s * LANES, scale)
            store(down, s * LANES, choice)
            largest_scale = select(largest_scale > scale, largest_scale, scale)
        store(largest, 0, largest_scale)
        quantize_scales(scales, 8, largest_scale, 15, 7, steps)
        for lane in range(min(LANES, blocks - first)):
            o = 50 * (first + lane)
            store_half(out, o, largest[lane] / F(15) * F(1.125))
            for s in range(8):
                high = I(0)
                if largest[lane] != F(0):
                    high = steps[s * LANES + lane] << 12 | down[s * LANES + lane] << 15
                for k in range(4):
                    index = I(point[codes[(4 * s + k) * LANES + lane]])
                    out[o + 2 + 4 * s + k] = index & 255
                    high |= index >> 8 << 3 * k
                out[o + 34 + 2 * s] = high & 255
                out[o + 35 + 2 * s] = high >> 8


@kernel
def _quantize_iq1_m(x, out, imatrix, point, span, neighbours):
    """x: float32 [blocks * 256], out: uint8 [blocks * 56], imatrix: float32 [n of a row], empty for none."""
    blocks, arrays = x.size // 256, _block_arrays()
    values, weights, codes, _ = arrays
    scales, down, steps = np.empty(16 * LANES, F), np.empty(16 * LANES, I), np.empty(16 * LANES, I)
    largest, d = np.empty(LANES, F), np.empty(LANES, F)
    for first in range(0, blocks, LANES):
        _load_blocks(x, imatrix, first, blocks, values, weights)
        largest_scale = zeros()
        for s in range(16):
            empty = _largest_magnitude(values, 16 * s, 16) < F(1e-7)
            scale, choice = _search_split(arrays, 16 * s, 16, empty, span, neighbours)
            store(scales, s * LANES, scale)
            store(down, s * LANES, choice)
            largest_scale = select(largest_scale > scale, largest_scale, scale)
        store(largest, 0, largest_scale)
        quantize_scales(scales, 16, largest_scale, 15, 7, steps)
        store(d, 0, _fit_block(arrays, down, steps, largest_scale / F(15)))
        for lane in range(min(LANES, blocks - first)):
            o = 56 * (first + lane)
            alive = largest[lane] != F(0)
            for s in range(16):
                a = s * LANES + lane
                low = I(point[codes[2 * s * LANES + lane]])
                high = I(point[codes[(2 * s + 1) * LANES + lane]])
                out[o + 2 * s] = low & 255
                out[o + 2 * s + 1] = high & 255
                shifts = (down[a] & 2) << 2 | (down[a] & 1) << 7 if alive else 0
                out[o + 32 + s] = low >> 8 | high >> 8 << 4 | shifts
            half = I(float_to_half(d[lane] * F(1.1125)))
            for q in range(4):
                word = (half >> 4 * q & 15) << 12
                for s in range(4):
                    word |= steps[(4 * q + s) * LANES + lane] << 3 * s
                out[o + 48 + 2 * q] = word & 255 if alive else 0
                out[o + 49 + 2 * q] = word >> 8 if alive else 0


@inline
def _block_arrays():
    """Working memory: transposed values and weights of super-blocks, codes of their groups, and for `_search_split`."""
    values, weights, codes = np.empty(256 * LANES, F), np.empty(256 * LANES, F), np.empty(32 * LANES, I)
    keys, order = np.empty(32 * LANES, np.int64), np.empty(32 * LANES, I)
    sums, sides, guess = np.empty((4, 33 * LANES), F), np.empty((2, 32 * LANES), F), np.empty(LANES, F)
    picks = np.empty(LANES, I), np.empty(LANES, I), np.empty(LANES, I)
    return values, weights, codes, (keys, order, sums, sides, guess, picks)


@inline
def _load_blocks(x, imatrix, first, blocks, values, weights):
    transpose(x, first, blocks, 256, 0, 256, values)
    mean = zeros()
    if imatrix.size:
        mean = sum_squares(values, 256) * F(2) / F(256)
        transpose(imatrix, first, blocks, 256, 0, 256, weights)
    weigh(values, weights, 0, 256, mean, imatrix.size > 0)


@inline
def _largest_magnitude(values, offset, size):
    top = zeros()
    for a in range(offset * LANES, (offset + size) * LANES, LANES):
        v = absolute(load(values, a, LANES))
        top = select(top > v, top, v)
    return top


@inline
def _search_split(arrays, offset, size, empty, span, neighbours):
    """Scale, shifts and codes of a sub-block: the best split of its sorted values into low, middle and high ones.

    All splits and shifts are tried (exact least squares), then groups that are no grid point move to their best
    neighbour. size: 32 with one shift (IQ1_S) or 16 with one for each half (IQ1_M). The second result has a bit for
    each shift that is downward: bit 0 for the only or second one, bit 1 for the first.
    """
    values, weights, codes, (keys, order, sums, sides, guess, picks) = arrays
    own_values, own_weights = values[offset * LANES :], weights[offset * LANES :]
    own_codes = codes[offset // 8 * LANES :]
    rows, row_weights = sides
    _sort(own_values, size, keys, order)
    if size == 32:
        scale, choice = _best_split_of_32(own_values, own_weights, order, sums)
    else:
        scale, choice = _best_split_of_16(own_values, own_weights, order, sums)
    empty = empty | (choice < I(0))
    turned = scale < F(0)
    scale = select(turned, negate(scale), scale)
    down = choice & I(3)
    down = select(turned, down ^ I(1 if size == 32 else 3), down)
    down = select(empty, I(0), down)
    _write_codes(own_codes, order, size, choice, turned, picks)
    untranspose(own_values, 0, size, rows)
    untranspose(own_weights, 0, size, row_weights)
    store(guess, 0, scale)
    moved = _move_to_grid(own_codes, size, rows, row_weights, guess, down, span, neighbours, picks)
    sum_qx, sum_qq = zeros(), zeros()
    for g in range(size // 8):
        code = load(own_codes, g * LANES, LANES)
        base = _base(down, size == 16 and g == 0)
        for i in range(8):
            a = (8 * g + i) * LANES
            q = convert((code >> I(2 * i)) & I(3), F) + base
            wq = load(own_weights, a, LANES) * q
            sum_qx = sum_qx + wq * load(own_values, a, LANES)
            sum_qq = sum_qq + wq * q
        store(own_codes, g * LANES, select(empty, I(0), code))
    refit = moved & (sum_qx > F(0)) & (sum_qq > F(0))
    return select(empty, F(0), select(refit, sum_qx / sum_qq, scale)), down


@inline
def _write_codes(codes, order, size, choice, turned, picks):
    """Codes of the groups of a sub-block that `choice` splits; with `turned` high and low change places."""
    low, middle, swap = picks
    store(low, 0, choice >> I(2) & I(63))
    store(middle, 0, choice >> I(8) & I(63))
    store(swap, 0, select(turned, splat(I(1), LANES), I(0)))
    for g in range(size // 8):
        store(codes, g * LANES, splat(I(0), LANES))
    for lane in range(LANES):
        for j in range(size):
            i = order[j * LANES + lane]
            level = I(j >= low[lane]) + I(j >= middle[lane])
            level = 2 - level if swap[lane] else level
            codes[i // 8 * LANES + lane] |= level << 2 * (i % 8)


@inline
def _move_to_grid(codes, size, rows, row_weights, guess, down, span, neighbours, picks):
    """Replace codes that are no grid points by their best neighbour; returns the mask of lanes that have such."""
    downward, moved, _ = picks
    store(downward, 0, down)
    for lane in range(LANES):
        moved[lane] = 0
        for g in range(size // 8):
            here = span[codes[g * LANES + lane]]
            if here != 0:
                moved[lane] = 1
                first_of_two = size == 16 and g == 0
                lower = downward[lane] & (2 if first_of_two else 1)
                base = F(-1) - SHIFT if lower else F(-1) + SHIFT
                codes[g * LANES + lane] = best_neighbour(
                    here, 8, 2, F(1), base, rows, row_weights, lane * size + 8 * g, guess[lane], neighbours
                )
    return load(moved, 0, LANES) != I(0)


@inline
def _base(down, first_of_two):
    """What level 0 stands for, -1 plus or minus the shift that `down` tells."""
    bit = down & I(2 if first_of_two else 1)
    return select(bit != I(0), splat(F(-1) - SHIFT, LANES), F(-1) + SHIFT)


@inline
def _sort(values, size, keys, order):
    """Indices of `size` values of each lane in ascending order, equal ones by index as in glibc's merging qsort."""
    for i in range(size):
        bits = view(load(values, i * LANES, LANES) + F(0), I)  # + 0: both zeros are equal
        ordered = bits ^ (bits >> I(31) & I(0x7FFFFFFF))
        store(keys, i * LANES, convert(ordered, np.int64) << 8 | i)
    p = 1
    while p < size:  # Batcher's odd-even merge sort
        k = p
        while k >= 1:
            for j in range(k % p, size - k, 2 * k):
                for i in range(j, j + min(k, size - j - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        a, b = load(keys, i * LANES, LANES), load(keys, (i + k) * LANES, LANES)
                        store(keys, i * LANES, select(a < b, a, b))
                        store(keys, (i + k) * LANES, select(a < b, b, a))
            k //= 2
        p *= 2
    for i in range(size):
        store(order, i * LANES, convert(load(keys, i * LANES, LANES) & 255, I))


@inline
def _best_split_of_32(values, weights, order, sums):
    """Best scale of a sub-block with one shift, and its choice: downward | low count << 2 | low and middle << 8, or -1
    where no split has weight.
    """
    sum_x, sum_w = sums[0], sums[1]
    _gather_sorted(values, weights, order, 32, sum_x, sum_w)
    x, w = zeros(), zeros()
    for j in range(0, 32 * LANES, LANES):
        next_x, next_w = x + load(sum_x, j, LANES), w + load(sum_w, j, LANES)
        store(sum_x, j, x)
        store(sum_w, j, w)
        x, w = next_x, next_w
    store(sum_x, 32 * LANES, x)
    store(sum_w, 32 * LANES, w)
    all_x, all_w = x, w
    best, scale, choice = splat(-FLT_MAX, LANES), zeros(), splat(I(-1), LANES)
    for low in range(33):
        low_x, low_w = load(sum_x, low * LANES, LANES), load(sum_w, low * LANES, LANES)
        for middle in range(low, 33):
            x, w = load(sum_x, middle * LANES, LANES), load(sum_w, middle * LANES, LANES)
            for down in range(2):
                shift = -SHIFT if down else SHIFT
                a, b, c = F(-1) + shift, shift, F(1) + shift
                sum_qx = low_x * a + (x - low_x) * b + (all_x - x) * c
                sum_qq = low_w * a * a + (w - low_w) * b * b + (all_w - w) * c * c
                better = (sum_qq > F(0)) & (sum_qx * sum_qx > best * sum_qq)
                if any_set(better):
                    scale = select(better, sum_qx / sum_qq, scale)
                    best = select(better, scale * sum_qx, best)
                    choice = select(better, I(down | low << 2 | middle << 8), choice)
    return scale, choice


@inline
def _best_split_of_16(values, weights, order, sums):
    """The same for a sub-block with a shift for each half; bit 1 of the choice stands for the first one."""
    first_x, first_w, second_x, second_w = sums[0], sums[1], sums[2], sums[3]
    _gather_sorted(values, weights, order, 16, first_x, first_w)
    x1, w1, x2, w2 = zeros(), zeros(), zeros(), zeros()
    for j in range(0, 16 * LANES, LANES):
        x, w, in_first = load(first_x, j, LANES), load(first_w, j, LANES), load(order, j, LANES) < I(8)
        store(first_x, j, x1)
        store(first_w, j, w1)
        store(second_x, j, x2)
        store(second_w, j, w2)
        x1, x2 = select(in_first, x1 + x, x1), select(in_first, x2, x2 + x)
        w1, w2 = select(in_first, w1 + w, w1), select(in_first, w2, w2 + w)
    store(first_x, 16 * LANES, x1)
    store(first_w, 16 * LANES, w1)
    store(second_x, 16 * LANES, x2)
    store(second_w, 16 * LANES, w2)
    up, lower = F(1) + SHIFT, F(1) - SHIFT
    up_all1, up_all2 = w1 * up * up, w2 * up * up
    down_all1, down_all2 = w1 * lower * lower, w2 * lower * lower
    best, scale, choice = splat(-FLT_MAX, LANES), zeros(), splat(I(-1), LANES)
    for low in range(17):
        low_x1, low_x2 = load(first_x, low * LANES, LANES), load(second_x, low * LANES, LANES)
        low_w1, low_w2 = load(first_w, low * LANES, LANES), load(second_w, low * LANES, LANES)
        for middle in range(low, 17):
            below1 = low_x1 + load(first_x, middle * LANES, LANES)
            below2 = low_x2 + load(second_x, middle * LANES, LANES)
            middle_w1, middle_w2 = load(first_w, middle * LANES, LANES), load(second_w, middle * LANES, LANES)
            up_x1, up_x2 = x1 * up - below1, x2 * up - below2
            down_x1, down_x2 = x1 * lower - below1, x2 * lower - below2
            up_w1 = up_all1 + low_w1 * F(0.75) + middle_w1 * F(-1.25)
            up_w2 = up_all2 + low_w2 * F(0.75) + middle_w2 * F(-1.25)
            down_w1 = down_all1 + low_w1 * F(1.25) + middle_w1 * F(-0.75)
            down_w2 = down_all2 + low_w2 * F(1.25) + middle_w2 * F(-0.75)
            for down in range(4):
                sum_qx = (down_x1 if down & 2 else up_x1) + (down_x2 if down & 1 else up_x2)
                sum_qq = (down_w1 if down & 2 else up_w1) + (down_w2 if down & 1 else up_w2)
                better = (sum_qq > F(0)) & (sum_qx * sum_qx > best * sum_qq)
                if any_set(better):
                    scale = select(better, sum_qx / sum_qq, scale)
                    best = select(better, scale * sum_qx, best)
                    choice = select(better, I(down | low << 2 | middle << 8), choice)
    return scale, choice


@inline
def _gather_sorted(values, weights, order, size, sorted_x, sorted_w):
    """Weight times value, and weight, in ascending order of the values."""
    for j in range(size):
        for lane in range(LANES):
            a, b = j * LANES + lane, order[j * LANES + lane] * LANES + lane
            sorted_x[a] = weights[b] * values[b]
            sorted_w[a] = weights[b]


@inline
def _fit_block(arrays, down, steps, d):
    """The scale of IQ1_M's super-block that fits best with all codes and steps given; `d` where nothing has weight."""
    values, weights, codes, _ = arrays
    sum_qx, sum_qq = zeros(), zeros()
    for s in range(16):
        multiple = convert(load(steps, s * LANES, LANES), F) * F(2) + F(1)
        for g in range(2):
            code = load(codes, (2 * s + g) * LANES, LANES)
            base = _base(load(down, s * LANES, LANES), g == 0)
            for i in range(8):
                a = (16 * s + 8 * g + i) * LANES
                q = (convert((code >> I(2 * i)) & I(3), F) + base) * multiple
                wq = load(weights, a, LANES) * q
                sum_qx = sum_qx + wq * load(values, a, LANES)
                sum_qq = sum_qq + wq * q
    return select(sum_qq > F(0), sum_qx / sum_qq, d)


@inlined
def _part_iq1_s(raw, block, d, k):
    """The half-word and the scale that group k of a block shares with others."""
    high = np.intp(raw[block + 34 + 2 * (k // 4)]) | np.intp(raw[block + 35 + 2 * (k // 4)]) << 8
    return high, d * F(2 * (high >> 12 & 7) + 1)


@inlined
def _write_iq1_s(raw, block, k, high, scale, points, y, at):
    """Write the eight values of group k to y; returns their shift."""
    shift = -SHIFT if high & 0x8000 else SHIFT
    point = np.intp(raw[block + 2 + k]) | (high >> 3 * (k % 4) & 7) << 8
    store(y, at, (load(points, 8 * point, 8) + shift) * scale)
    return shift


@inlined
def _part_iq1_m(raw, block, d, k):
    """The byte of two nibbles and the scale of group k and the one beside it."""
    scales = I(raw[block + 48 + k // 8 * 2]) | I(raw[block + 49 + k // 8 * 2]) << 8
    return np.intp(raw[block + 32 + k // 2]), d * F(2 * (scales >> 3 * (k // 2 % 4) & 7) + 1)


@inlined
def _write_iq1_m(raw, block, k, high, scale, points, y, at):
    high = high >> 4 * (k % 2)
    shift = -SHIFT if high & 8 else SHIFT
    point = np.intp(raw[block + k]) | (high & 7) << 8
    store(y, at, (load(points, 8 * point, 8) + shift) * scale)
    return shift


@inlined
def _scale_iq1_m(raw, block):
    """The scale of a block, from four half-words."""
    bits = np.uint16(0)
    for i in range(4):
        bits |= np.uint16(np.uint16(raw[block + 49 + 2 * i] >> 4) << np.uint16(4 * i))
    return half_to_float(bits)


@kernel
def _find_damage_iq1_m(raw):
    """Number of the first block whose scale, spread over four half-words, is NaN or infinite; -1 when there is none."""
    for block in range(raw.size // 56):
        if (raw[56 * block + 55] & 0x70) == 0x70 and (raw[56 * block + 53] & 0xC0) == 0xC0:
            return block
    return -1


def _codec(
    kind: TensorType,
    dequantize: Callable,
    quantize: Callable,
    recode: Callable,
    typical_step: float,
    needs_imatrix: bool,
    find_damage: Callable | None = None,
) -> Codec:
    def tables():
        return (grids.points("IQ1_S"),)

    def halves():
        return grids.levels("IQ1_S"), grids.halves("IQ1_S")

    return codec(
        kind,
        dequantize,
        quantize,
        tables,
        partial(grids.code_book, "IQ1_S"),
        needs_imatrix,
        limit=16.875,
        grid=Grid(typical_step, 1.45, book=8),
        recode=recode,
        halves=halves,
        find_damage=find_damage,
    )


CODECS = {
    TensorType.IQ1_S: _codec(TensorType.IQ1_S, _dequantize_iq1_s, _quantize_iq1_s, _recode_iq1_s, 1.58, True),
    TensorType.IQ1_M: _codec(
        TensorType.IQ1_M, _dequantize_iq1_m, _quantize_iq1_m, _recode_iq1_m, 1.86, False, _find_damage_iq1_m
    ),
}
