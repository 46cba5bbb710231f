"""What the quantizers of the IQ formats share: blocks side by side in vector lanes, and the search of IQ2 and IQ3.

ggml's searches are serial float sums over one block, which may not be reordered. So `LANES` blocks are searched at
once, one in each lane of a vector: every lane adds in ggml's order and gets ggml's bits. `transpose` lays out blocks
for this: value i of all lanes is `buffer[i * LANES : (i + 1) * LANES]`. Lanes past the last block repeat it.

Most of the time goes into groups that are no grid point: each looks for the best of some ten neighbours, in each of
some twenty attempts. There the lanes of vectors are neighbours, not blocks.

Source: `ggml-quants.c` (order of float operations) of llama.cpp v0.5.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from ggufmerge.quants.codec import HALF_MAX, Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.grids import NEIGHBOURS
from ggufmerge.quants.simd import (
    INTERPRETED,
    convert,
    first,
    indices,
    largest,
    load,
    pick,
    select,
    splat,
    square_root,
    store,
    view,
)
from ggufmerge.types import TensorType

F, I = np.float32, np.int32

LANES = 2 if INTERPRETED else 16  # blocks searched at once; interpreted, empty lanes cost time
FLT_MAX = np.finfo(F).max

NO_WEIGHTS = np.empty(0, F)  # the importance matrix of a call without one
NO_WEIGHTS.setflags(write=False)

inline: Callable = njit(nogil=True, error_model="numpy", forceinline=True)


def codec(
    kind: TensorType,
    dequantize: Callable,
    quantize: Callable,
    tables: Callable[[], tuple] = tuple,
    book: Callable[[], tuple] = tuple,
    needs_imatrix: bool = False,
    *,
    limit: float,
    grid: Grid,
    recode: Callable,
    halves: Callable[[], tuple] = tuple,
    find_damage: Callable | None = None,
) -> Codec:
    """The codec of three kernels: dequantize(raw, out, *tables()), quantize(x, out, imatrix, *book()), which takes flat
    arrays and an empty `imatrix` for none, and recode(raw, x, out, *tables(), *halves()). The tables are asked for at
    each call, so that they are built when a type is first used.

    limit: of the values, in units of the largest scale, the float16 that blocks begin with but for IQ1_M's.
    """

    def read(raw, out):
        dequantize(raw, out, *tables())

    def write(x, out):
        quantize(x.reshape(-1), out.reshape(-1), NO_WEIGHTS, *book())

    def write_weighted(x, out, imatrix):
        quantize(x.reshape(-1), out.reshape(-1), imatrix, *book())

    def rewrite(raw, x, out):
        recode(raw, x, out, *tables(), *halves())

    return Codec(
        kind,
        read,
        None if needs_imatrix else write,
        write_weighted,
        limit=limit * HALF_MAX,
        scales=() if find_damage else (0,),
        find_damage=find_damage,
        grid=grid,
        recode=rewrite,
    )


@inline
def transpose(values, start, blocks, block, offset, size, buffer):
    """Values offset, ..., offset + size - 1 of the blocks start, start + 1, ... of `block` values each, to lanes.

    values: float32 [n], all blocks, or one row of an importance matrix, whose blocks repeat.
    """
    for lane in range(LANES):
        a = min(start + lane, blocks - 1) * block % values.size + offset
        for i in range(size):
            buffer[i * LANES + lane] = values[a + i]


@inline
def untranspose(values, offset, size, rows):
    """The reverse for `size` values from `offset` on: lane j gets rows[j * size : (j + 1) * size].

    Lanes are the inner loop, because LLVM would spend seconds on unrolling the other one.
    """
    for i in range(size):
        for lane in range(LANES):
            rows[lane * size + i] = values[(offset + i) * LANES + lane]


@inline
def zeros():
    """A float vector of zeros."""
    return splat(F(0), LANES)


@inline
def int_zeros():
    """An int32 vector of zeros."""
    return splat(I(0), LANES)


@inline
def negate(x):
    """-x, also for zero."""
    return x * F(-1)


@inline
def nearest_int(x):
    """Float vector to the nearest int32, ties to even, by ggml's addition of 1.5 * 2**23: also its results for numbers
    of more than 22 bits.
    """
    return (view(x + F(12582912), I) & 0x7FFFFF) - 0x400000


@inline
def clamp(l, low, high):
    """Int vector limited to low..high."""
    l = select(l < low, low, l)
    return select(l > high, high, l)


@inline
def sum_squares(values, size):
    """Lane by lane, the sum of the squares of the first `size` values."""
    total = zeros()
    for a in range(0, size * LANES, LANES):
        v = load(values, a, LANES)
        total = total + v * v
    return total


@inline
def weigh(values, weights, offset, size, mean, weighted):
    """Weights of `size` values from `offset`: q * sqrt(mean + x * x) of importances q, in place; else mean + x * x."""
    for i in range(size):
        v = load(values, (offset + i) * LANES, LANES)
        w = mean + v * v
        store(weights, i * LANES, load(weights, i * LANES, LANES) * square_root(w) if weighted else w)


@inline
def quantize_scales(scales, count, largest_scale, divisor, limit, steps):
    """`count` scales of sub-blocks as odd multiples 2 * step + 1, step in 0..limit, of largest_scale / divisor."""
    inverse = F(1) / (largest_scale / F(divisor))
    for a in range(0, count * LANES, LANES):
        multiple = (inverse * load(scales, a, LANES) - F(1)) * F(0.5)
        store(steps, a, clamp(nearest_int(multiple), I(0), I(limit)))


@inline
def best_neighbour(here, width, bits, step, base, values, weights, a, scale, neighbours):
    """Code of the neighbour, of those `here` (an element of CodeBook.span), with the least weighted squared error from
    values[a : a + width]; a level stands for scale * (step * level + base). The first of equally good ones.
    """
    start, count = here >> 9, here & 511
    # what each level of a value would add to the error, looked up for the levels of all neighbours
    quantized = (convert(indices(I, 8) & I((1 << bits) - 1), F) * step + base) * scale
    best, where = splat(FLT_MAX, NEIGHBOURS), splat(I(0), NEIGHBOURS)
    for c in range(0, count, NEIGHBOURS):
        code = convert(load(neighbours, start + c, NEIGHBOURS), I)
        error = splat(F(0), NEIGHBOURS)
        for i in range(width):
            difference = quantized - values[a + i]
            error = error + pick(difference * weights[a + i] * difference, code >> I(bits * i))
        place = indices(I, NEIGHBOURS) + I(c)
        better = (error < best) & (place < I(count))
        best = select(better, error, best)
        where = select(better, place, where)
    least = best == -largest(negate(best))
    if count <= NEIGHBOURS:
        return neighbours[start + first(least)]
    return neighbours[start - largest(select(least, where * I(-1), I(-512)))]


OFF_GRID, ANY_OFF_GRID, ALL = 0, 1, 2


class Search(NamedTuple):
    """How ggml searches the scale of a sub-block in a format of IQ2 or IQ3. All are constants of a kernel."""

    size: int  # values of a sub-block
    width: int  # values of a group, which is a grid point
    bits: int  # of a level in a code
    levels: int
    tries: int  # scales tried on either side of the first one
    step: np.float32  # between them, in units of half a level
    again: int  # which groups are rounded once more in the end: OFF_GRID ones, all if ANY_OFF_GRID, or ALL
    even_signs: bool  # an even number of values of each 8 is negative
    mean: np.float32  # of the square of a value, this much goes into weights by importance
    plain_mean: np.float32  # and this much of that into weights without an importance matrix
    floor: np.float32  # a sub-block without a larger value is zero


@inline
def search_arrays():
    """Working memory of `search_blocks`. Its results: of each sub-block the scale and whether it is zero, of each group
    the code, of each 8 values the signs. Last, a tuple of scratch.
    """
    values, weights, roots = np.empty(256 * LANES, F), np.empty(32 * LANES, F), np.empty(32 * LANES, F)
    row_values, row_roots = np.empty(32 * LANES, F), np.empty(32 * LANES, F)
    candidate, moved, kept = np.empty(8 * LANES, I), np.empty(8 * LANES, I), np.empty(8 * LANES, I)
    scratch = values, weights, roots, row_values, row_roots, candidate, moved, kept, np.empty(LANES, F)
    return np.empty(16 * LANES, F), np.empty(16 * LANES, I), np.empty(64 * LANES, I), np.empty(32 * LANES, I), scratch


@inline
def search_blocks(x, imatrix, start, how, book, arrays):
    """Scales, codes and signs of LANES super-blocks from `start`; returns their largest scales.

    x: float32 [blocks * 256]; imatrix: float32 [n of a row], empty for none; how: Search; book: `span` and
    `neighbours` of grids.CodeBook; arrays: of `search_arrays`.
    """
    scales, zero, codes, signs, scratch = arrays
    values, weights = scratch[0], scratch[1]
    blocks, weighted = x.size // 256, imatrix.size > 0
    used = min(LANES, blocks - start)
    transpose(x, start, blocks, 256, 0, 256, values)
    mean = zeros()
    if weighted:
        mean = sum_squares(values, 256) * how.mean / F(256)
    elif how.plain_mean:
        mean = sum_squares(values, 256) * how.mean / F(256) * how.plain_mean
    largest_scale = zeros()
    for offset in range(0, 256, how.size):
        sub = offset // how.size * LANES
        if weighted:
            transpose(imatrix, start, blocks, 256, offset, how.size, weights)
        weigh(values, weights, offset, how.size, mean, weighted)
        own_codes, own_signs = codes[offset // how.width * LANES :], signs[offset // 8 * LANES :]
        _split_signs(values, weights, offset, how, own_signs)
        top = load(values, offset * LANES, LANES)
        for a in range(offset * LANES, (offset + how.size) * LANES, LANES):
            v = load(values, a, LANES)
            top = select(top > v, top, v)
        empty = top < how.floor
        scale = top / F(2 * how.levels - 1)
        if how.again == ALL:
            scale = _scale_of_any_codes(values, offset, how.size, how.levels + 1, weights, scratch[2])
            top = scale * F(how.levels)
            empty = empty | (top <= F(0))
        scale = _search_grid(offset, how, used, top, scale, book, scratch, own_codes)
        turned, flip = scale < F(0), I(127 if how.even_signs else 255)
        scale = select(empty, F(0), select(turned, negate(scale), scale))
        for a in range(0, how.size // how.width * LANES, LANES):
            store(own_codes, a, select(empty, I(0), load(own_codes, a, LANES)))
        for a in range(0, how.size // 8 * LANES, LANES):
            bits = load(own_signs, a, LANES)
            store(own_signs, a, select(empty, I(0), select(turned, bits ^ flip, bits)))
        store(scales, sub, scale)
        store(zero, sub, select(empty, splat(I(1), LANES), I(0)))
        largest_scale = select(largest_scale > scale, largest_scale, scale)
    return largest_scale


@inline
def _split_signs(values, weights, offset, how, signs):
    """Replace the values from `offset` by their magnitudes and set a bit in `signs` for each negative one.

    signs: int32, a vector for each group of 8. With `even_signs` an odd number of negative values is mended at the
    least important one, whose magnitude becomes negative, and the eighth bit is dropped.
    """
    one = splat(I(1), LANES)
    for g in range(how.size // 8):
        bits, odd, least, lowest = int_zeros(), int_zeros(), int_zeros(), splat(F(np.inf), LANES)
        for i in range(8):
            a = (offset + 8 * g + i) * LANES
            v = load(values, a, LANES)
            negative = v < F(0)
            bits = bits | select(negative, one << I(i), I(0))
            odd = odd ^ select(negative, one, I(0))
            store(values, a, select(negative, negate(v), v))
            if how.even_signs:
                importance = load(weights, (8 * g + i) * LANES, LANES) * v * v
                lower = importance < lowest
                lowest = select(lower, importance, lowest)
                least = select(lower, int_zeros() + I(i), least)
        if how.even_signs:
            for i in range(8):
                a = (offset + 8 * g + i) * LANES
                v = load(values, a, LANES)
                flip = (least == I(i)) & (odd == I(1))
                store(values, a, select(flip, negate(v), v))
                bits = bits ^ select(flip, one << I(i), I(0))
            bits = bits & I(127)
        store(signs, g * LANES, bits)


@inline
def _search_grid(offset, how, used, top, scale, book, scratch, codes):
    """The scale of each lane's sub-block of magnitudes at `offset`, and the grid points of its groups.

    A magnitude is scale * (2 * level + 1). Scales are tried that make `top` the largest such number, 2 * levels - 1,
    or a little more or less. Groups are rounded to levels, those that are no grid point move to their best neighbour;
    the scale that then fits best wins, `scale` if none fits. In the end groups are rounded once more with it.
    Writes a vector of codes for each group; returns the scales.
    """
    values, weights, roots, row_values, row_roots, candidate, moved, kept, guess = scratch
    vectors = how.size // how.width * LANES
    for a in range(0, how.size * LANES, LANES):
        store(roots, a, square_root(load(weights, a, LANES)))
    untranspose(values, offset, how.size, row_values)
    untranspose(roots, 0, how.size, row_roots)
    for a in range(0, vectors, LANES):
        store(codes, a, int_zeros())
        store(kept, a, int_zeros() + I(how.again != OFF_GRID))
    best = zeros()
    for attempt in range(-how.tries, how.tries + 1):
        inverse = (F(2 * how.levels - 1) + F(attempt) * how.step) / top
        store(guess, 0, F(1) / inverse)
        _round_to_codes(values, offset, how, inverse, candidate)
        _move_to_grid(candidate, how, used, book, scratch)
        sum_qx, sum_qq = _fit(values, offset, weights, candidate, how)
        better = (sum_qq > F(0)) & (sum_qx * sum_qx > best * sum_qq)
        scale = select(better, sum_qx / sum_qq, scale)
        best = select(better, scale * sum_qx, best)
        for a in range(0, vectors, LANES):
            store(codes, a, select(better, load(candidate, a, LANES), load(codes, a, LANES)))
            off_grid = load(moved, a, LANES) | I(how.again == ALL)
            store(kept, a, select(better, off_grid, load(kept, a, LANES)))
    any_off_grid = int_zeros()
    for a in range(0, vectors, LANES):
        any_off_grid = any_off_grid | load(kept, a, LANES)
    again = (any_off_grid != I(0)) & (scale > F(0))
    store(guess, 0, scale)
    _round_to_codes(values, offset, how, F(1) / scale, candidate)
    for a in range(0, vectors, LANES):
        rounded = again & ((load(kept, a, LANES) | I(how.again == ANY_OFF_GRID)) != I(0))
        store(codes, a, select(rounded, load(candidate, a, LANES), load(codes, a, LANES)))
    _move_to_grid(codes, how, used, book, scratch)
    sum_qx, sum_qq = _fit(values, offset, weights, codes, how)
    return select(again & (sum_qq > F(0)), sum_qx / sum_qq, scale)


@inline
def _round_to_codes(values, offset, how, inverse, codes):
    """Codes of the levels nearest to each group."""
    for g in range(how.size // how.width):
        code = int_zeros()
        for i in range(how.width):
            v = load(values, (offset + how.width * g + i) * LANES, LANES)
            level = clamp(nearest_int((inverse * v - F(1)) * F(0.5)), I(0), I(how.levels - 1))
            code = code | level << I(how.bits * i)
        store(codes, g * LANES, code)


@inline
def _move_to_grid(codes, how, used, book, scratch):
    """Replace codes that are no grid points by their best neighbour, seen with the scales in `guess`; `moved` tells
    which.
    """
    span, neighbours = book
    _, _, _, row_values, row_roots, _, moved, _, guess = scratch
    for g in range(how.size // how.width):
        for lane in range(used):
            here = span[codes[g * LANES + lane]]
            moved[g * LANES + lane] = here != 0
            if here != 0:
                a = lane * how.size + g * how.width
                codes[g * LANES + lane] = best_neighbour(
                    here, how.width, how.bits, F(2), F(1), row_values, row_roots, a, guess[lane], neighbours
                )


@inline
def _fit(values, offset, weights, codes, how):
    """Weighted sums of value * level and of level squared, which give the best scale of these codes and its quality."""
    sum_qx, sum_qq = zeros(), zeros()
    mask = I((1 << how.bits) - 1)
    for g in range(how.size // how.width):
        code = load(codes, g * LANES, LANES)
        for i in range(how.width):
            a = (how.width * g + i) * LANES
            q = convert(((code >> I(how.bits * i)) & mask) * 2 + 1, F)
            w = load(weights, a, LANES)
            sum_qx = sum_qx + w * load(values, offset * LANES + a, LANES) * q
            sum_qq = sum_qq + w * q * q
    return sum_qx, sum_qq


@inline
def _scale_of_any_codes(values, offset, size, limit, weights, codes):
    """ggml's scale for codes 0..limit without a grid (`make_qp_quants`): the best of 9, then 5 passes that improve
    codes one by one. codes: float32 scratch.

    ggml keeps a code in a byte, so that the -1 of a negative value comes back as 255.
    """
    start = offset * LANES
    top = zeros()
    for a in range(start, start + size * LANES, LANES):
        v = load(values, a, LANES)
        top = select(top > v, top, v)
    inverse = F(limit) / top
    lowest = zeros()
    for i in range(size):
        v = load(values, start + i * LANES, LANES)
        difference = v - F(1) / inverse * convert(nearest_int(inverse * v) & I(255), F)
        lowest = lowest + load(weights, i * LANES, LANES) * difference * difference
    for attempt in range(-4, 5):
        if attempt == 0:
            continue
        candidate = (F(0.1) * F(attempt) + F(limit)) / top
        error = zeros()
        for i in range(size):
            v = load(values, start + i * LANES, LANES)
            difference = v - F(1) / candidate * _limited_code(candidate * v, limit)
            error = error + load(weights, i * LANES, LANES) * difference * difference
        lower = error < lowest
        lowest = select(lower, error, lowest)
        inverse = select(lower, candidate, inverse)
    sum_lx, sum_ll = zeros(), zeros()
    for i in range(size):
        v, w = load(values, start + i * LANES, LANES), load(weights, i * LANES, LANES)
        l = _limited_code(inverse * v, limit)
        store(codes, i * LANES, _as_byte(l))
        sum_lx = sum_lx + w * v * l
        sum_ll = sum_ll + w * l * l
    for _ in range(5):
        for i in range(size):
            v, w = load(values, start + i * LANES, LANES), load(weights, i * LANES, LANES)
            old = load(codes, i * LANES, LANES)
            slx, sll = sum_lx - w * v * old, sum_ll - w * old * old
            l = _limited_code(v * sll / slx, limit)
            usable = (slx > F(0)) & (sll > F(0)) & (l != old)
            slx, sll = slx + w * v * l, sll + w * l * l
            better = usable & (slx * slx * sum_ll > sum_lx * sum_lx * sll)
            store(codes, i * LANES, select(better, _as_byte(l), old))
            sum_lx, sum_ll = select(better, slx, sum_lx), select(better, sll, sum_ll)
    return select(sum_ll > F(0), sum_lx / sum_ll, F(0))


@inline
def _limited_code(x, limit):
    """The nearest integer, at most `limit`, as float."""
    code = nearest_int(x)
    return convert(select(code > I(limit), I(limit), code), F)


@inline
def _as_byte(code):
    return convert(convert(code, I) & I(255), F)
