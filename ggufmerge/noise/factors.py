"""What is measured of each type's rounding: `factors.json`, made by scripts/calibrate_noise.py, which says of what.

**The error of one file.** On a grid of equal steps the error of a weight that lies anywhere between two points has the
variance step^2 / 12. Quantizers choose the scale that fits a block best, so it is less (the steps of Q4_K say 1.13
times the RMS that is there), or the ends of the grid cut weights off, so it is more; and code books have no steps. So
the variance is step^2 / 12 times a factor. Where the factor depends on the shape of the weights, it is a function of
one figure that a file shows: how large its values are in steps. Q1_0 and MXFP4 show too little, so their factor is that
of most layers of real models; in the RMS it is a quarter off for weights with heavy tails (Q1_0), and for those of
which all blocks have the same largest one (MXFP4).

**The difference of two files.** Two fine-tunes of one base lie on nearly the same grids, so most of their errors are
equal and cancel: where a change d is much smaller than the step, a weight stays in its cell, and with a probability of
|d| / step it jumps by a whole step. The mean square of the differences is then E|d| * step, instead of
d^2 + step^2 / 6. In between, where the scales of some blocks change too, it is a curve, in units of the step, of
the change in steps. It is measured, and nearly the same for all weights.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufmerge.types import TensorType

OCTAVES = 0.25  # from one point of a curve to the next
LOG_RATIOS = np.arange(-8, 3.01, OCTAVES)  # log2 of change / step at the points


@dataclass(frozen=True)
class Noise:
    """The rounding of one type, written with or without an importance matrix.

    fit: coefficients, lowest first, of the logarithm of the factor as a polynomial of log(mean square of the values /
        mean square of the steps), which is held inside `range`.
    error: largest relative error of the RMS that this gave, over the weights it was measured on.
    curve: logarithms of what `plain` is to be multiplied by for the mean square of the difference of two files, at
        LOG_RATIOS.  tilt: what is added to them for each unit by which the logarithm that `fit` takes, too, is larger
        than `shape`.
    spread: standard deviation of the logarithm between kinds of weights.
    """

    fit: tuple[float, ...]
    range: tuple[float, float]
    error: float
    curve: tuple[float, ...]
    tilt: tuple[float, ...]
    shape: float
    spread: float

    def factor(self, squares_in_steps: float) -> float:
        """What step^2 / 12 is to be multiplied by. squares_in_steps: mean square of the values / that of the steps."""
        return float(np.exp(np.polynomial.polynomial.polyval(self._at(squares_in_steps), self.fit)))

    def jumps(self, ratio: ArrayLike, squares_in_steps: float) -> NDArray[np.float64]:
        """Mean square of the difference of two files, in steps^2, for normal changes of `ratio` steps RMS."""
        logs = np.log2(np.maximum(np.asarray(ratio, np.float64), 1e-12))
        curve = np.array(self.curve) + np.array(self.tilt) * (self._at(squares_in_steps) - self.shape)
        found: NDArray[np.float64] = plain(ratio) * np.exp(np.interp(logs, LOG_RATIOS, curve))
        return found

    def _at(self, squares_in_steps: float) -> float:
        return min(max(float(np.log(max(squares_in_steps, 1e-30))), self.range[0]), self.range[1])


def plain(ratio: ArrayLike) -> NDArray[np.float64]:
    """The curve of a grid that never moves, about: E|d| for small changes d of `ratio` steps RMS, d^2 for large ones.

    >>> plain([0.01, 10]).round(3)
    array([  0.008, 100.   ])
    """
    r = np.asarray(ratio, np.float64)
    found: NDArray[np.float64] = r * r + np.sqrt(2 / np.pi) * r * np.exp(-r)
    return found


@functools.cache
def noise_of(kind: TensorType, weighted: bool) -> Noise | None:
    """What is known of a type; None for types without steps. weighted: whether an importance matrix was used; for types
    that ignore it, or that need it, it makes no difference.
    """
    modes = _table().get(str(kind))
    if not modes:
        return None
    data = modes.get("imatrix" if weighted else "plain") or next(iter(modes.values()))
    return Noise(
        tuple(data["fit"]),
        tuple(data["range"]),
        data["error"],
        tuple(data["curve"]),
        tuple(data["tilt"]),
        data["shape"],
        data["spread"],
    )


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("factors.json").read_text("utf-8"))
    return table
