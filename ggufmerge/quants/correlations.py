"""How the inputs of a weight go together: the correlation matrix of what a matrix is multiplied with.

With it the error of one column of a weight can be made up for in the next ones (`quants.calibrated`). An importance
matrix has the mean squares of the inputs, D; with the correlations C the second moments are D^1/2 C D^1/2. A
correlation matrix is kept whole, or as its largest eigenvectors, which hold most of what matters and are far smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

_UNIT = np.float32(127)  # what a stored correlation of 1 is


@dataclass(frozen=True)
class Correlation:
    """The correlations of the inputs of one matrix with n columns; one of the two is given.

    loadings: float32 [r, n], the largest eigenvectors of C, each times the root of its eigenvalue: C is taken for
        loadings^T loadings, with its diagonal put back to 1.
    triangle: int8 [n (n + 1) / 2], 127 C: the lower triangle with the diagonal, row by row.
    """

    loadings: NDArray[np.float32] | None = None
    triangle: NDArray[np.int8] | None = None

    @property
    def n(self) -> int:
        """Columns of the matrix."""
        if self.loadings is not None:
            return int(self.loadings.shape[1])
        assert self.triangle is not None, "one of the two is given"
        return triangle_side(self.triangle.size)

    def matrix(self) -> NDArray[np.float32]:
        """C, float32 [n, n], with ones on its diagonal."""
        n = self.n
        if self.loadings is not None:
            c = self.loadings.T @ self.loadings
        else:
            assert self.triangle is not None, "one of the two is given"
            c = np.zeros((n, n), np.float32)
            c[np.tril_indices(n)] = self.triangle.astype(np.float32) / _UNIT
            c += np.tril(c, -1).T
        c[np.diag_indices(n)] = 1
        return c


def triangle_side(size: int) -> int:
    """The n of a triangle of n (n + 1) / 2 values; that of the largest one within `size`."""
    return (isqrt(8 * size + 1) - 1) // 2


def triangle_of(c: NDArray[np.floating]) -> NDArray[np.int8]:
    """The stored form of a whole correlation matrix [n, n]: int8 [n (n + 1) / 2]."""
    return np.rint(np.clip(c[np.tril_indices(len(c))], -1, 1) * _UNIT).astype(np.int8)


def loadings_of(c: NDArray[np.floating], rank: int) -> NDArray[np.float32]:
    """The `rank` largest eigenvectors of a correlation matrix [n, n] as loadings, float32 [min(rank, n), n]."""
    values, vectors = np.linalg.eigh(np.asarray(c, np.float64))
    order = np.argsort(values)[::-1][:rank]
    found = np.sqrt(np.maximum(values[order], 0))[:, None] * vectors[:, order].T
    return _within_one(found).astype(np.float32)


def correlation_of_all(parts: Sequence[Correlation], squares: Sequence[NDArray[np.floating]]) -> Correlation:
    """The correlations of the inputs of several texts together, from those of each text.

    squares: for each text the sums of squared inputs [n], which the second moments have on their diagonal. Where all
    are kept as loadings, so is the result, with the largest of their ranks.
    """
    total = np.sum(np.asarray(squares, np.float64), axis=0)
    shares = [np.sqrt(s / np.where(total > 0, total, 1)) for s in np.asarray(squares, np.float64)]
    loadings = [part.loadings for part in parts if part.loadings is not None]
    if len(loadings) < len(parts):
        c = np.zeros((len(total), len(total)))
        for part, share in zip(parts, shares, strict=True):
            c += part.matrix() * share[:, None] * share
        return Correlation(triangle=triangle_of(c))
    stacked = np.concatenate([own * share for own, share in zip(loadings, shares, strict=True)])
    return Correlation(loadings=largest_of(stacked, max(map(len, loadings))))


def largest_of(factor: NDArray[np.floating], rank: int) -> NDArray[np.float32]:
    """The loadings of a correlation matrix that is given by factor^T factor, factor [k, n]: float32 [rank, n].

    Rows behind the k-th, or the n-th, are 0.
    """
    factor = np.asarray(factor, np.float64)
    values, vectors = np.linalg.eigh(factor @ factor.T)
    found = np.zeros((rank, factor.shape[1]))
    kept = min(rank, len(values))
    found[:kept] = vectors[:, ::-1][:, :kept].T @ factor
    return _within_one(found).astype(np.float32)


def _within_one(loadings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Loadings whose squares add up to at most 1 in each column, which rounding may have passed."""
    sums = np.sqrt((loadings**2).sum(axis=0))
    return loadings / np.maximum(sums, 1)
