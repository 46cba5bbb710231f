"""How large the values of an array are, and with that whether all are finite, in one quick pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel


def magnitude(x: NDArray[np.float32]) -> float:
    """The largest absolute value of a contiguous float32 array: NaN if one is NaN, else infinity if one is infinite; 0
    without values.
    """
    bits = x.reshape(-1).view(np.uint32)
    bits.flags.writeable = False
    return float(np.uint32(_largest_bits(bits)).view(np.float32))


def first_bad(x: NDArray[np.float32]) -> int:
    """Index, in the flattened array, of the first value that is NaN or infinite; -1 when all are finite."""
    bad = ~np.isfinite(x.reshape(-1))
    return int(bad.argmax()) if bad.any() else -1


@kernel
def _largest_bits(bits):
    """The largest of the bit patterns of floats without their signs: they sort as the floats do, NaN above infinity."""
    top = np.uint32(0)
    for i in range(bits.size):
        top = max(top, bits[i] & np.uint32(0x7FFFFFFF))
    return top
