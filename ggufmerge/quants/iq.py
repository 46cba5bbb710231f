"""What the quantizers of the IQ formats share: blocks side by side in vector lanes, and ggml's rounding.

ggml's searches are serial float sums over one block, which may not be reordered. So `LANES` blocks are searched at
once, one in each lane of a vector: every lane adds in ggml's order and gets ggml's bits. `transpose` lays out blocks
for this: value i of all lanes is `buffer[i * LANES : (i + 1) * LANES]`. Lanes past the last block repeat it, and
writing its bytes again is harmless.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ggufmerge.quants.simd import convert, first, indices, largest, load, select, splat, square_root, store, view

F = np.float32
LANES = 16
OFF_GRID, ANY_OFF_GRID, ALWAYS = 0, 1, 2  # which groups `search_grid` rounds once more in the end
NO_WEIGHTS = np.empty(0, F)
NO_WEIGHTS.setflags(write=False)

kernel = njit(nogil=True, cache=True, error_model="numpy")
inline = njit(nogil=True, forceinline=True, error_model="numpy")


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
def zeros():
    """A float vector of zeros."""
    return splat(F(0), LANES)


@inline
def nearest_int(x):
    """Float vector to the nearest int32, ties to even, by ggml's addition of 1.5 * 2**23: also its results for numbers
    of more than 22 bits.
    """
    return (view(x + F(12582912), np.int32) & 0x7FFFFF) - 0x400000


@inline
def clamp(l, low, high):
    """Int vector limited to low..high."""
    l = select(l < low, low, l)
    return select(l > high, high, l)


@inline
def negate(x):
    """-x, also for zero."""
    return x * F(-1)


@inline
def mean_square(values, factor):
    """Lane by lane, the sum of the squares of 256 values, times `factor`, divided by 256."""
    total = zeros()
    for i in range(0, 256 * LANES, LANES):
        v = load(values, i, LANES)
        total = total + v * v
    return total * factor / F(256)


@inline
def weigh(values, weights, offset, size, mean, weighted):
    """Weights of `size` values from `offset`: q * sqrt(mean + x * x) of importances q, in place; else mean + x * x."""
    for i in range(size):
        v = load(values, (offset + i) * LANES, LANES)
        w = mean + v * v
        store(weights, i * LANES, load(weights, i * LANES, LANES) * square_root(w) if weighted else w)


@inline
def split_signs(values, weights, offset, size, even, signs):
    """Replace `size` values from `offset` by their magnitudes and set a bit in `signs` for each negative one.

    signs: int32, a vector for each group of 8. With `even` an odd number of negative values is mended at the least
    important one, whose magnitude becomes negative, and the eighth bit is dropped.
    """
    zero, one = splat(np.int32(0), LANES), splat(np.int32(1), LANES)
    for g in range(size // 8):
        bits, odd, least, lowest = zero, zero, zero, zeros()
        for i in range(8):
            a = (offset + 8 * g + i) * LANES
            v = load(values, a, LANES)
            negative = v < F(0)
            bits = bits | select(negative, one << np.int32(i), zero)
            odd = odd ^ select(negative, one, zero)
            store(values, a, select(negative, negate(v), v))
            if even:
                importance = load(weights, (8 * g + i) * LANES, LANES) * v * v
                lower = (importance < lowest) | (zero == np.int32(i))
                lowest = select(lower, importance, lowest)
                least = select(lower, zero + np.int32(i), least)
        if even:
            for i in range(8):
                a = (offset + 8 * g + i) * LANES
                v = load(values, a, LANES)
                flip = (least == np.int32(i)) & (odd == np.int32(1))
                store(values, a, select(flip, negate(v), v))
                bits = bits ^ select(flip, one << np.int32(i), zero)
            bits = bits & np.int32(127)
        store(signs, g * LANES, bits)


@inline
def highest(values, offset, size):
    """Lane by lane, the largest of `size` values from `offset`."""
    top = load(values, offset * LANES, LANES)
    for i in range(1, size):
        v = load(values, (offset + i) * LANES, LANES)
        top = select(top > v, top, v)
    return top


@inline
def round_to_codes(values, offset, groups, width, bits, levels, inverse, codes):
    """Codes of the levels nearest to each group of `width` values, which are odd numbers times 1 / inverse."""
    for g in range(groups):
        code = splat(np.int32(0), LANES)
        for i in range(width):
            v = load(values, (offset + width * g + i) * LANES, LANES)
            l = clamp(nearest_int((inverse * v - F(1)) * F(0.5)), np.int32(0), np.int32(levels - 1))
            code = code | l << np.int32(bits * i)
        store(codes, g * LANES, code)


@inline
def move_to_grid(codes, groups, width, bits, rows, roots, scales, span, neighbours, moved):
    """Replace codes that are no grid points by the best of their neighbours; `moved` tells which.

    rows, roots: float32 [LANES * groups * width], magnitudes and roots of weights, untransposed; scales: float32
    [LANES].
    """
    for g in range(groups):
        for lane in range(LANES):
            here = span[codes[g * LANES + lane]]
            moved[g * LANES + lane] = here != 0
            if here != 0:
                a = (lane * groups + g) * width
                codes[g * LANES + lane] = best_neighbour(
                    here, width, bits, F(2), F(1), rows, roots, a, scales[lane], neighbours
                )


@inline
def best_neighbour(here, width, bits, step, base, values, weights, a, scale, neighbours):
    """Code of the neighbour, of those `here` (an element of CodeBook.span), with the least weighted squared error from
    values[a : a + width]; a level stands for scale * (step * level + base). The first of equally good ones.
    """
    start, count = here >> 9, here & 511
    mask = np.int32((1 << bits) - 1)
    best, where = splat(F(3.4028235e38), LANES), splat(np.int32(0), LANES)
    for c in range(0, count, LANES):
        code = convert(load(neighbours, start + c, LANES), np.int32)
        distance = zeros()
        for i in range(width):
            q = convert((code >> np.int32(bits * i)) & mask, np.float32) * step + base
            difference = q * scale - values[a + i]
            distance = distance + difference * weights[a + i] * difference
        place = indices(np.int32, LANES) + np.int32(c)
        closer = (distance < best) & (place < np.int32(count))
        best = select(closer, distance, best)
        where = select(closer, place, where)
    least = best == -largest(negate(best))
    if count <= LANES:
        return neighbours[start + first(least)]
    return neighbours[start - largest(select(least, 0 - where, np.int32(-512)))]


@inline
def fit(values, offset, weights, codes, groups, width, bits):
    """Weighted sums of value * level and of level squared, for the best scale of these codes and its quality."""
    sum_qx, sum_qq = zeros(), zeros()
    mask = np.int32((1 << bits) - 1)
    for g in range(groups):
        code = load(codes, g * LANES, LANES)
        for i in range(width):
            a = width * g + i
            q = convert(((code >> np.int32(bits * i)) & mask) * 2 + 1, np.float32)
            w = load(weights, a * LANES, LANES)
            sum_qx = sum_qx + w * load(values, (offset + a) * LANES, LANES) * q
            sum_qq = sum_qq + w * q * q
    return sum_qx, sum_qq


@inline
def scratch_arrays():
    """Working memory of `search_grid`: weights, rows, roots, candidate, moved, kept, guess."""
    floats, ints = np.empty((3, 32 * LANES), F), np.empty((3, 8 * LANES), np.int32)
    return floats[0], floats[1], floats[2], ints[0], ints[1], ints[2], np.empty(LANES, F)


@inline
def search_grid(values, offset, size, width, bits, levels, tries, step, top, scale, rule, book, scratch, codes):
    """The scale of each lane's sub-block and the grid points of its groups, by ggml's search for IQ2 and IQ3.

    A magnitude is scale * (2 * level + 1). Scales are tried that make `top` the largest such number, 2 * levels - 1,
    and up to `tries` times `step` more or less. Groups are rounded to levels, those that are no grid point move to
    their best neighbour; the scale that then fits best wins. In the end groups are rounded once more with it.

    values: float32, transposed magnitudes of the super-block; `size` of them from `offset` are searched, in groups of
    `width`. scratch[0]: their weights. scale: the result when nothing fits. rule: OFF_GRID, ANY_OFF_GRID or ALWAYS.
    book: `span` and `neighbours` of the CodeBook. Writes a vector of codes for each group and returns the scales.
    """
    groups = size // width
    span, neighbours = book
    weights, rows, roots, candidate, moved, kept, guess = scratch
    for i in range(size):
        store(guess, 0, square_root(load(weights, i * LANES, LANES)))
        for lane in range(LANES):
            rows[lane * size + i] = values[(offset + i) * LANES + lane]
            roots[lane * size + i] = guess[lane]
    nothing = splat(np.int32(0), LANES)
    for g in range(groups):
        store(codes, g * LANES, nothing)
        store(kept, g * LANES, nothing + np.int32(rule != OFF_GRID))
    best = zeros()
    for attempt in range(-tries, tries + 1):
        inverse = (F(2 * levels - 1) + F(attempt) * step) / top
        store(guess, 0, F(1) / inverse)
        round_to_codes(values, offset, groups, width, bits, levels, inverse, candidate)
        move_to_grid(candidate, groups, width, bits, rows, roots, guess, span, neighbours, moved)
        sum_qx, sum_qq = fit(values, offset, weights, candidate, groups, width, bits)
        better = (sum_qq > F(0)) & (sum_qx * sum_qx > best * sum_qq)
        scale = select(better, sum_qx / sum_qq, scale)
        best = select(better, scale * sum_qx, best)
        for a in range(0, groups * LANES, LANES):
            store(codes, a, select(better, load(candidate, a, LANES), load(codes, a, LANES)))
            off_grid = load(moved, a, LANES) | np.int32(rule == ALWAYS)
            store(kept, a, select(better, off_grid, load(kept, a, LANES)))
    any_off_grid = nothing
    for a in range(0, groups * LANES, LANES):
        any_off_grid = any_off_grid | load(kept, a, LANES)
    again = (any_off_grid != np.int32(0)) & (scale > F(0))
    store(guess, 0, scale)
    round_to_codes(values, offset, groups, width, bits, levels, F(1) / scale, candidate)
    for a in range(0, groups * LANES, LANES):
        rounded = again & ((load(kept, a, LANES) | np.int32(rule == ANY_OFF_GRID)) != np.int32(0))
        store(codes, a, select(rounded, load(candidate, a, LANES), load(codes, a, LANES)))
    move_to_grid(codes, groups, width, bits, rows, roots, guess, span, neighbours, moved)
    sum_qx, sum_qq = fit(values, offset, weights, codes, groups, width, bits)
    return select(again & (sum_qq > F(0)), sum_qx / sum_qq, scale)


@inline
def positive_scale(values, offset, size, limit, weights, codes):
    """ggml's scale for codes 0..limit (`make_qp_quants`): the best of 9, then codes improved one by one in 5 passes.

    ggml keeps a code in a byte, so that the -1 of a negative value comes back as 255. codes: float32 scratch.
    """
    start, end = offset * LANES, (offset + size) * LANES
    top = zeros()
    for a in range(start, end, LANES):
        v = load(values, a, LANES)
        top = select(top > v, top, v)
    inverse, lowest = F(limit) / top, zeros()
    for attempt in range(-5, 5):
        # -5 stands for ggml's first guess, whose codes are not limited; 0 is the same guess again and left out
        if attempt == 0:
            continue
        candidate = (F(0.1) * F(attempt) + F(limit)) / top if attempt != -5 else inverse
        scale, error = F(1) / candidate, zeros()
        for i in range(size):
            v = load(values, start + i * LANES, LANES)
            code = nearest_int(candidate * v)
            code = code & np.int32(255) if attempt == -5 else select(code > np.int32(limit), np.int32(limit), code)
            difference = v - scale * convert(code, np.float32)
            error = error + load(weights, i * LANES, LANES) * difference * difference
        lower = (error < lowest) | (splat(attempt, LANES) == -5)
        lowest = select(lower, error, lowest)
        inverse = select(lower, candidate, inverse)
    sum_lx, sum_ll = zeros(), zeros()
    for i in range(size):
        v, w = load(values, start + i * LANES, LANES), load(weights, i * LANES, LANES)
        code = nearest_int(inverse * v)
        code = select(code > np.int32(limit), np.int32(limit), code)
        store(codes, i * LANES, convert(code & np.int32(255), np.float32))
        l = convert(code, np.float32)
        sum_lx = sum_lx + w * v * l
        sum_ll = sum_ll + w * l * l
    for _ in range(5):
        for i in range(size):
            v, w = load(values, start + i * LANES, LANES), load(weights, i * LANES, LANES)
            old = load(codes, i * LANES, LANES)
            slx, sll = sum_lx - w * v * old, sum_ll - w * old * old
            code = nearest_int(v * sll / slx)
            code = select(code > np.int32(limit), np.int32(limit), code)
            l = convert(code, np.float32)
            usable = (slx > F(0)) & (sll > F(0)) & (l != old)
            slx, sll = slx + w * v * l, sll + w * l * l
            better = usable & (slx * slx * sum_ll > sum_lx * sum_lx * sll)
            store(codes, i * LANES, select(better, convert(code & np.int32(255), np.float32), old))
            sum_lx, sum_ll = select(better, slx, sum_lx), select(better, sll, sum_ll)
    return select(sum_ll > F(0), sum_lx / sum_ll, F(0))


@inline
def settle(scale, empty, codes, groups, signs, sign_groups, sign_mask):
    """Make scales positive by turning all signs, and zero with all codes and signs where the sub-block is empty."""
    negative = scale < F(0)
    for a in range(0, groups * LANES, LANES):
        store(codes, a, select(empty, np.int32(0), load(codes, a, LANES)))
    for a in range(0, sign_groups * LANES, LANES):
        bits = load(signs, a, LANES)
        store(signs, a, select(empty, np.int32(0), select(negative, bits ^ sign_mask, bits)))
    return select(empty, F(0), select(negative, negate(scale), scale))


@inline
def quantize_scales(scales, count, largest_scale, divisor, limit, steps):
    """`count` scales of sub-blocks as odd multiples 2 * step + 1, step in 0..limit, of largest_scale / divisor."""
    inverse = F(1) / (largest_scale / F(divisor))
    for a in range(0, count * LANES, LANES):
        multiple = (inverse * load(scales, a, LANES) - F(1)) * F(0.5)
        store(steps, a, clamp(nearest_int(multiple), np.int32(0), np.int32(limit)))


@inline
def search_blocks(
    x, imatrix, first, blocks, factor, size, even, width, bits, levels, tries, step, rule, floor, book, arrays
):
    """Scales, codes and signs of LANES super-blocks from `first`; returns their largest scales.

    x: float32 [blocks * 256]; imatrix: float32 [n of a row], empty for none; factor: of the mean square in weights
    (in IQ2_S without imatrix a quarter of it, in IQ3 nothing); size: of a sub-block; even: signs, see `split_signs`;
    floor: a sub-block whose values are all smaller is zero; the others as in `search_grid`.
    arrays: `block_arrays()`.
    """
    values, scales, zero, codes, signs, scratch = arrays
    weighted = imatrix.size > 0
    transpose(x, first, blocks, 256, 0, 256, values)
    mean = zeros()
    if weighted:
        mean = mean_square(values, factor)
    elif size == 16:
        mean = mean_square(values, factor) * F(0.25)
    largest_scale = zeros()
    for offset in range(0, 256, size):
        weights, s = scratch[0], offset // size
        if weighted:
            transpose(imatrix, first, blocks, 256, offset, size, weights)
        weigh(values, weights, offset, size, mean, weighted)
        own_codes, own_signs = codes[offset // width * LANES :], signs[offset // 8 * LANES :]
        split_signs(values, weights, offset, size, even, own_signs)
        top = highest(values, offset, size)
        empty = top < floor
        scale = top / F(2 * levels - 1)
        if rule == ALWAYS:
            scale = positive_scale(values, offset, size, levels + 1, weights, scratch[1])
            top = scale * F(levels)
            empty = empty | (top <= F(0))
        scale = search_grid(
            values, offset, size, width, bits, levels, tries, step, top, scale, rule, book, scratch, own_codes
        )
        sign_mask = np.int32(127 if even else 255)
        scale = settle(scale, empty, own_codes, size // width, own_signs, size // 8, sign_mask)
        store(scales, s * LANES, scale)
        store(zero, s * LANES, select(empty, splat(np.int32(1), LANES), np.int32(0)))
        largest_scale = select(largest_scale > scale, largest_scale, scale)
    return largest_scale


@inline
def block_arrays():
    """Working memory of `search_blocks`: values; scales of sub-blocks and whether they are zero; codes and signs of
    groups; scratch.
    """
    values, scales, zero = np.empty(256 * LANES, F), np.empty(16 * LANES, F), np.empty(16 * LANES, np.int32)
    codes, signs = np.empty(64 * LANES, np.int32), np.empty(32 * LANES, np.int32)
    return values, scales, zero, codes, signs, scratch_arrays()
