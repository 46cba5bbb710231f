"""Float sums that come out the same whatever the chunks, the threads and the processor.

A row is added up in a fixed number of partial sums, which fit any vector unit, and these by halves. Rows are added one
after the other in float64. The few numbers of a whole merge (weights, inner products) are summed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel

LANES = 64  # partial sums of a row


def add_rows(so_far: NDArray[np.float64], partial: NDArray[np.float64]) -> NDArray[np.float64]:
    """so_far + partial[0] + partial[1] + ..., strictly in this order: the same sum however the rows were cut."""
    total = np.array(so_far, np.float64)
    _add_rows(total.reshape(-1), partial.reshape(len(partial), -1))
    return total


def add_counts(so_far: NDArray[np.int64], partial: NDArray[Any]) -> NDArray[np.int64]:
    """so_far + partial, of whole numbers, which any order adds up to the same."""
    return np.add(so_far, partial)


@kernel
def _add_rows(total, partial):
    for r in range(partial.shape[0]):
        for i in range(total.size):
            total[i] += partial[r, i]


def exact_sum(values: Iterable[float]) -> float:
    """The sum rounded once, so that the order of the models has no influence; NaN where infinities meet."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return math.nan


@kernel
def lane_total(lanes):
    """Sum of the partial sums in `lanes`, float64 [LANES], by halves; `lanes` is overwritten."""
    half = lanes.size // 2
    while half > 0:
        for l in range(half):
            lanes[l] += lanes[l + half]
        half //= 2
    return lanes[0]
