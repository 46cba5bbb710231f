"""The nearest grid points: `Codec.recode` of the formats with code books, in which a group of values has one code.

Of all points of a grid, with all signs that a group may have, the one with the least sum of squared differences from
the wanted values is taken, under the scale that the group has. The search is exact, and quick because a difference
depends on the level of one value only: sums over each half of a group are tabled for every combination of levels (81 or
64 of them), and the sum of a point is that of its two halves. `LANES` groups are searched side by side, one in each
lane of a vector.

In formats that store 7 signs of 8, the number of negative values is even: where it is odd among the wanted values, one
of them takes the wrong sign, the one for which that costs least, and the point is chosen together with it.

Sums and differences are float32. What a wanted value exceeds the largest level by would drown the rest, so each square
is given without the part that all levels have in common.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufmerge.quants.lanes import LANES, constant, inlined, row, set_row
from ggufmerge.quants.nearest import limited
from ggufmerge.quants.simd import absolute, any_set, load, select, splat, store

F, I = np.float32, np.int32
HUGE = F(1e29)  # wanted values beyond it count as it, so that squares stay finite


class Groups(NamedTuple):
    """How a format groups values. All are constants of a kernel."""

    width: int  # values of a grid point
    points: int  # of a group, 1 or 2
    even_signs: bool  # an even number of a group's values is negative; otherwise signs are free
    shift: np.float32  # in formats without signs, what levels are shifted by, up or down; 0 in others
    both_shifts: bool  # each group chooses one of the two


class Work(NamedTuple):
    """LANES groups side by side: arrays of rows of LANES. The results are the group numbers and the last three."""

    row: NDArray[np.float32]  # [8], scratch
    wanted: NDArray[np.float32]  # 8 rows, a value of all groups in each
    stored: NDArray[np.float32]  # 8 rows, what the blocks hold
    chosen: NDArray[np.float32]  # 8 rows
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    terms: NDArray[np.float32]  # 8 rows, the squares for each level of a value, then 8 of what a wrong sign adds
    sums: NDArray[np.float32]  # 2 * 81 rows, the same for combinations of levels: sums of squares,
    turns: NDArray[np.float32]  # and what the cheapest wrong sign adds
    least: NDArray[np.float32]  # 4 rows: the least sum of each point of a group, then those with a wrong sign
    where: NDArray[np.int32]  # 4 rows: their points
    group: NDArray[np.int64]  # number of the group
    cost: NDArray[np.float32]  # least sum so far
    found: NDArray[np.int32]  # 0 if the stored group stays, 2 if the shift is downward in a search of both, else 1
    point: NDArray[np.int32]  # [2, LANES], the points of a group
    signs: NDArray[np.int32]  # a bit for each negative value, the first in the lowest place


@inlined
def _work_arrays():
    """Memory for `_next_groups`."""
    return Work(
        row=np.zeros(8, F),
        wanted=np.zeros(8 * LANES, F),
        stored=np.zeros(8 * LANES, F),
        chosen=np.zeros(8 * LANES, F),
        scale=np.zeros(LANES, F),
        shift=np.zeros(LANES, F),
        terms=np.empty(16 * LANES, F),
        sums=np.empty(162 * LANES, F),
        turns=np.empty(162 * LANES, F),
        least=np.empty(4 * LANES, F),
        where=np.empty(4 * LANES, I),
        group=np.zeros(LANES, np.int64),
        cost=np.empty(LANES, F),
        found=np.empty(LANES, I),
        point=np.zeros((2, LANES), I),
        signs=np.zeros(LANES, I),
    )


@inlined
def recode_blocks(raw, x, out, book, how, load_group, block_bytes, scale_of, part_of, write, tables, store_group):
    """Write `out`, the blocks of `raw` with the points nearest to `x`; all flat, of whole blocks of 256 values.

    book: `points` of grids.py, flat, its `levels` and `halves`.  how: Groups.
    load_group to tables: as in `_next_groups`.
    store_group(out, group, point, signs, found): writes what was found for the group of this number; see `Work`.
    """
    out[:] = raw
    points, levels, halves = book
    work, group = _work_arrays(), 0
    while group < x.size // (how.width * how.points):
        count, group = _next_groups(
            work,
            (levels, halves.ravel(), points),
            how,
            group,
            raw,
            x,
            load_group,
            block_bytes,
            scale_of,
            part_of,
            write,
            tables,
        )
        for lane in range(count):
            if work.found[lane]:
                store_group(out, work.group[lane], work.point[:, lane], work.signs[lane], work.found[lane])


@inlined
def _next_groups(work, book, how, group, raw, x, load_group, block_bytes, scale_of, part_of, write, tables):
    """Search the points of the next groups from number `group` on whose values are not the wanted ones.

    book: `levels`, `halves` and `points` of grids.py, flat.  how: Groups.  raw, x: blocks and wanted values, flat.
    load_group(x, start): a vector of as many values as a group has.
    scale_of(raw, block): the scale `d` of the block that begins at this byte.
    part_of(raw, block, d, k): the bits and the scale that its group k shares with some others.
    write(raw, block, k, bits, scale, tables, y, at): writes the values of the group to y; returns its shift.
    Returns how many groups have results in `work`, and the number of the group after them.
    """
    size = how.width * how.points
    per_block, count = 256 // size, 0
    while count < LANES and group < x.size // size:
        block = group // per_block * block_bytes
        bits, scale = part_of(raw, block, scale_of(raw, block), group % per_block)
        shift = write(raw, block, group % per_block, bits, scale, tables, work.row, 0)
        wanted = load_group(x, size * group)
        if any_set(wanted != load_group(work.row, 0)):
            work.group[count], work.scale[count], work.shift[count] = group, scale, shift
            for i in range(size):
                work.stored[i * LANES + count] = work.row[i]
            store(work.row, 0, limited(wanted, -HUGE, HUGE))
            for i in range(size):
                work.wanted[i * LANES + count] = work.row[i]
            count += 1
        group += 1
    if count:
        _start(work, book, how)
        if how.both_shifts:
            set_row(work.shift, 0, constant(how.shift))
            _find(work, book, how, 1)
            set_row(work.shift, 0, constant(-how.shift))
            _find(work, book, how, 2)
        else:
            _find(work, book, how, 1)
    return count, group


@inlined
def load_4(x, start):
    return load(x, start, 4)


@inlined
def load_8(x, start):
    return load(x, start, 8)


@inlined
def _start(work, book, how):
    """Begin with what is stored: searches find only what is nearer."""
    reach, total = _reach(work, book, how), constant(0)
    for i in range(how.width * how.points):
        total = total + _square(row(work.wanted, i), row(work.stored, i), reach)
    store(work.cost, 0, total)
    store(work.found, 0, splat(I(0), LANES))


@inlined
def _find(work, book, how, number):
    """The nearest points and signs of the groups, where they are nearer than what was found so far; number: not 0."""
    levels, halves, points = book
    scale, shift, reach = load(work.scale, 0, LANES), load(work.shift, 0, LANES), _reach(work, book, how)
    zero, one = splat(I(0), LANES), splat(I(1), LANES)
    signs, odd = zero, zero
    if how.shift == F(0):
        for i in range(how.width * how.points):
            wanted = row(work.wanted, i)
            bit = select(select(scale < F(0), wanted * F(-1), wanted) < F(0), one, zero)
            signs = signs | bit << I(i)
            odd = odd ^ bit
    for part in range(how.points):
        for half in range(2):
            _tabulate(work, levels, how, part, half, reach)
        _search(work, halves, how, part)
    if how.even_signs:
        # an odd number of signs is wrong in the part where a wrong sign costs least
        excess = load(work.least, 2 * LANES, LANES) - load(work.least, 0, LANES)
        other = constant(np.inf)
        if how.points == 2:
            other = load(work.least, 3 * LANES, LANES) - load(work.least, LANES, LANES)
        in_first = select(excess <= other, odd, zero)
        _replace(work.where, 0, in_first != zero, load(work.where, 2 * LANES, LANES))
        _replace(work.where, LANES, odd > in_first, load(work.where, 3 * LANES, LANES))
    for lane in range(LANES):
        for part in range(how.points):
            first = how.width * work.where[part * LANES + lane]
            for i in range(how.width):
                work.chosen[(how.width * part + i) * LANES + lane] = points[first + i]
    if how.even_signs:
        signs = signs ^ _cheapest_sign(work, scale, how.width * how.points, odd)
    total = constant(0)
    for i in range(how.width * how.points):
        value = (row(work.chosen, i) + shift) * scale
        value = select(signs >> I(i) & I(1) != zero, value * F(-1), value)
        total = total + _square(row(work.wanted, i), value, reach)
    nearer = total < load(work.cost, 0, LANES)
    _replace(work.cost, 0, nearer, total)
    _replace(work.signs, 0, nearer, signs)
    _replace(work.found, 0, nearer, splat(I(number), LANES))
    for part in range(how.points):
        _replace(work.point[part], 0, nearer, load(work.where, part * LANES, LANES))


@inlined
def _replace(array, at, mask, vector):
    store(array, at, select(mask, vector, load(array, at, LANES)))


@inlined
def _reach(work, book, how):
    """The largest magnitude that a value of each group can have."""
    levels = book[0]
    return absolute(load(work.scale, 0, LANES)) * (levels[levels.size - 1] + how.shift)


@inlined
def _square(wanted, value, reach):
    """The square of the difference, less that of the part of `wanted` beyond `reach`, which no value can mend."""
    near = limited(wanted, reach * F(-1), reach)
    difference = near - value
    return difference * (difference + (wanted - near) * F(2))


@inlined
def _tabulate(work, levels, how, part, half, reach):
    """Sums of squares for all combinations of levels in half of a point; the level of the first value counts most.

    Where signs are free, a value takes that of the wanted one, and only magnitudes count.
    """
    width, count = how.width // 2, levels.size
    table = half * count**width
    scale, shift = load(work.scale, 0, LANES), load(work.shift, 0, LANES)
    set_row(work.sums, table, constant(0))
    set_row(work.turns, table, constant(np.inf))
    combinations = 1
    for i in range(width):
        wanted = row(work.wanted, how.width * part + width * half + i)
        if how.shift == F(0):
            wanted, scale = absolute(wanted), absolute(scale)
        for level in range(count):
            value = (levels[level] + shift) * scale
            set_row(work.terms, level, _square(wanted, value, reach))
            if how.even_signs:
                set_row(work.terms, 8 + level, wanted * value * F(4))
        for c in range(combinations - 1, -1, -1):  # backwards: longer combinations take the place of shorter ones
            total, turn = row(work.sums, table + c), row(work.turns, table + c)
            for level in range(count - 1, -1, -1):
                set_row(work.sums, table + c * count + level, total + row(work.terms, level))
                if how.even_signs:
                    term = row(work.terms, 8 + level)
                    set_row(work.turns, table + c * count + level, select(term < turn, term, turn))
        combinations *= count


@inlined
def _search(work, halves, how, part):
    """Least sums over all points, and with one wrong sign if their number must be even; the first of equal ones."""
    best, where = constant(np.inf), splat(I(0), LANES)
    best_turned, where_turned = best, where
    for p in range(halves.size // 2):
        a, b = halves[2 * p], halves[2 * p + 1]
        total = row(work.sums, a) + row(work.sums, b)
        where = select(total < best, I(p), where)
        best = select(total < best, total, best)
        if how.even_signs:
            turn, other = row(work.turns, a), row(work.turns, b)
            total = total + select(turn < other, turn, other)
            where_turned = select(total < best_turned, I(p), where_turned)
            best_turned = select(total < best_turned, total, best_turned)
    set_row(work.least, part, best)
    set_row(work.where, part, where)
    set_row(work.least, 2 + part, best_turned)
    set_row(work.where, 2 + part, where_turned)


@inlined
def _cheapest_sign(work, scale, size, odd):
    """The bit of the sign that costs least to get wrong, where `odd` is 1; 0 elsewhere."""
    least, bit = constant(np.inf), splat(I(0), LANES)
    for i in range(size):
        cost = absolute(row(work.chosen, i) * scale * row(work.wanted, i))
        bit = select(cost < least, odd << I(i), bit)
        least = select(cost < least, cost, least)
    return bit
