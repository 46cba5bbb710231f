"""Stochastic rounding onto the grid that a tensor's blocks have already, so that a small change outlives quantization.

The weights of a quantized model lie on the grids of their blocks. A change smaller than half a step moves none of them
when each is rounded to its nearest neighbour: nearly all of an ordinary fine-tune's change is lost that way. Rounding
up with the probability of the fraction instead keeps the change in expectation, exactly: what is added is noise without
a direction, of variance step^2 f (1 - f) for the fraction f, while the change has one and adds up over a row.

Source: Gupta et al., "Deep learning with limited numerical precision" (2015), section 3.1. What it does for adapters is
measured in `docs/lora.md`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.random import fill_words
from ggufmerge.types import TensorType

# types whose values lie at equal distances within so many neighbours: those that share a scale and an offset
UNIFORM = {
    TensorType.Q4_0: 32,
    TensorType.Q4_1: 32,
    TensorType.Q5_0: 32,
    TensorType.Q5_1: 32,
    TensorType.Q8_0: 32,
    TensorType.Q2_K: 16,
    TensorType.Q3_K: 16,
    TensorType.Q4_K: 32,
    TensorType.Q5_K: 32,
    TensorType.Q6_K: 16,
}

# and so many points
_POINTS = {
    TensorType.Q4_0: 16,
    TensorType.Q4_1: 16,
    TensorType.Q5_0: 32,
    TensorType.Q5_1: 32,
    TensorType.Q8_0: 256,
    TensorType.Q2_K: 4,
    TensorType.Q3_K: 8,
    TensorType.Q4_K: 16,
    TensorType.Q5_K: 32,
    TensorType.Q6_K: 64,
}
# their steps relative to the RMS of normally distributed weights, measured on 512 Ki of them
STEPS = {
    TensorType.Q4_0: 0.30,
    TensorType.Q4_1: 0.28,
    TensorType.Q5_0: 0.15,
    TensorType.Q5_1: 0.135,
    TensorType.Q8_0: 0.019,
    TensorType.Q2_K: 1.15,
    TensorType.Q3_K: 0.54,
    TensorType.Q4_K: 0.28,
    TensorType.Q5_K: 0.135,
    TensorType.Q6_K: 0.069,
}


def round_on_grid(
    base: NDArray[np.float32], rows: NDArray[np.float32], kind: TensorType, key: int, start: int
) -> NDArray[np.float32]:
    """`rows` moved onto the grids of `base`, float32 [k, n], at random and on average to where they are.

    base: the same weights before their change, dequantized from blocks of type `kind`, one of `UNIFORM`.
    key, start: of the random stream, and the number of the first value in it; a value's luck depends on nothing else.
    Groups of equal values have no grid and stay as they are in `rows`.
    """
    luck = np.empty(rows.size, np.uint32)
    fill_words(np.uint64(key), start, luck)
    out = np.empty_like(rows)
    _round(base, rows, luck.reshape(rows.shape), UNIFORM[kind], _POINTS[kind], out)
    return out


@kernel
def _round(base, rows, luck, group, points, out):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        for first in range(0, rows.shape[1], group):
            step = _step(base[i, first : first + group], points)
            if step == 0:
                for j in range(first, first + group):
                    out[i, j] = rows[i, j]
                continue
            per_step = 1 / step
            for j in range(first, first + group):
                t = (np.float64(rows[i, j]) - np.float64(base[i, j])) * per_step
                k = np.floor(t)
                k += luck[i, j] < (t - k) * 4294967296.0
                out[i, j] = base[i, j] + step * k


@kernel
def _step(group, points):  # type: ignore[no-untyped-def]
    """The step of the coarsest grid of at most `points` points that all values of a group lie on; 0 without one.

    It is that of the block, or a multiple if no two values tell it apart. Float rounding moves a value by some 1e-5 of
    a step, so what lies within a thousandth is on the grid.
    """
    low = high = np.float64(group[0])
    for j in range(1, group.size):
        x = np.float64(group[j])
        low = min(low, x)
        high = max(high, x)
    if not high > low:
        return 0.0
    for steps in range(1, points):
        scale = steps / (high - low)
        fits = True
        for j in range(group.size):
            t = (np.float64(group[j]) - low) * scale
            if abs(t - np.rint(t)) > 1e-3:
                fits = False
                break
        if fits:
            return (high - low) / steps
    return 0.0
