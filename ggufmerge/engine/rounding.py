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
    _round(base, rows, luck.reshape(rows.shape), UNIFORM[kind], out)
    return out


@kernel
def _round(base, rows, luck, group, out):  # type: ignore[no-untyped-def]
    values = np.empty(group, np.float32)
    for i in range(rows.shape[0]):
        for first in range(0, rows.shape[1], group):
            step = _step(base[i, first : first + group], values)
            for j in range(first, first + group):
                if step == 0:
                    out[i, j] = rows[i, j]
                    continue
                t = (np.float64(rows[i, j]) - np.float64(base[i, j])) / step
                k = np.floor(t)
                if luck[i, j] < (t - k) * 4294967296.0:
                    k += 1
                out[i, j] = base[i, j] + step * k


@kernel
def _step(group, values):  # type: ignore[no-untyped-def]
    """The smallest distance of two different values of a group: a step of its grid, or a multiple; 0 if all are equal.

    values: scratch of the same size. The finest grid has 256 points, so what is closer differs by float rounding only.
    """
    n = group.size
    for i in range(n):  # insertion sort
        x = group[i]
        j = i
        while j > 0 and values[j - 1] > x:
            values[j] = values[j - 1]
            j -= 1
        values[j] = x
    least = (np.float64(values[n - 1]) - np.float64(values[0])) / 512
    step = 0.0
    for i in range(1, n):
        gap = np.float64(values[i]) - np.float64(values[i - 1])
        if gap > least and (step == 0 or gap < step):
            step = gap
    return step
