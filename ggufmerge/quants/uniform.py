"""Uniform grids: block formats in which the values of a group lie at equal distances, on a scale and an offset that
they share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel


@dataclass(frozen=True)
class UniformGrid:
    """The grid of a block format.

    group: values that share a scale and an offset.  points: values that one of them can have at most.
    typical_step: the step relative to the RMS of normally distributed weights, measured on 512 Ki of them.
    """

    group: int
    points: int
    typical_step: float

    def steps(self, values: NDArray[np.float32], out: NDArray[np.float64]) -> None:
        """Fill `out`, float64 [rows, n / group], with the step of each group of `values`, float32 [rows, n], which were
        dequantized from blocks of the format, whatever was added to them or they were multiplied with since.

        It is the step of the coarsest grid that all values of a group lie on: that of the block, or a multiple if no
        two values tell it apart; 0 for a group of equal values, which has none.
        """
        _fill_steps(values, self.group, self.points, out)


@kernel
def _fill_steps(values, group, points, out):
    """See `UniformGrid.steps`."""
    for i in range(out.shape[0]):
        for g in range(out.shape[1]):
            out[i, g] = _step(values[i, g * group : (g + 1) * group], points)


@kernel
def _step(group, points):
    """The step of the coarsest grid of at most `points` points that all values of a group lie on; 0 without one.

    Float rounding moves a value by some 1e-5 of a step, so what lies within a thousandth is on the grid.
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
