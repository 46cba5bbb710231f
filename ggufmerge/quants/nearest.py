"""The nearest code of a value under a given scale, on a uniform grid or among few levels: the heart of `Codec.recode`.

Nearest is what differs least from the wanted value, with that limited to what the block can hold, and differences in
float32. Of equally near codes the stored one stays, else the lowest is taken. So a code stays where all are equal (a
scale of zero) or none is near (one that is NaN or infinite).
"""

from __future__ import annotations

import numpy as np

from ggufmerge.quants.half import inlined
from ggufmerge.quants.simd import absolute, convert, select, truncate

F = np.float32


@inlined
def nearest_on_grid(x, code, scale, offset, low, high):
    """Codes, whole numbers from `low` to `high` as float32, whose values code * scale + offset are nearest to `x`.

    x, code: float vectors, the wanted values and the stored codes.  scale, offset: float32; one of `low` and `offset`
    is zero, so that the value of `low` is not a rounded sum.
    """
    first, last = F(low) * scale + offset, F(high) * scale + offset
    x = limited(x, min(first, last), max(first, last))
    # Rounding moves the place by far less than half a step: the nearest is the code below it or the one above.
    below = truncate(limited((x - first) * (F(1) / scale), F(0), F(high - low - 1))) + F(low)
    error = absolute(below * scale + offset - x)
    other = absolute((below + F(1)) * scale + offset - x)
    nearest = select(other < error, below + F(1), below)
    error = select(other < error, other, error)
    return select(error < absolute(code * scale + offset - x), nearest, code)


@inlined
def nearest_level(x, code, levels, scale, low, high):
    """Indices of `levels`, float32 [16], whose values level * scale are nearest to `x`.

    x, code: float and int32 vectors, the wanted values and the stored codes.  low, high: the extreme levels.
    """
    x = limited(x, min(F(low) * scale, F(high) * scale), max(F(low) * scale, F(high) * scale))
    least = absolute(levels[0] * scale - x)
    own, nearest = least, code & 0
    for candidate in range(1, 16):
        error = absolute(levels[candidate] * scale - x)
        own = select(code == candidate, error, own)
        nearest = select(error < least, np.int32(candidate), nearest)
        least = select(error < least, error, least)
    return select(least < own, nearest, code)


@inlined
def limited(v, low, high):
    """A float vector limited to low..high; NaN becomes `low`."""
    v = select(v > low, v, low)
    return select(v < high, v, high)


@inlined
def signed(codes, base):
    """Codes as float32, with the zero at `base`."""
    return convert(codes, F) - F(base)
