"""What the second moments of a matrix's inputs say about the errors of its columns.

The output of a matrix W that is written as W + E is wrong by E x; the mean of its square is tr(E H E^T) with the second
moments H of the inputs x. When columns are rounded one after the other, the errors so far say where the next one would
best be: with H = A^T D A, A of unit lower triangle and D diagonal, a row's loss is the sum over the columns i of
D_i (e_i + sum_{j<i} A_ij e_j)^2, so column i should err by -sum A_ij e_j. (This is GPTQ, Frantar et al. 2022, in the
form of Babai's nearest plane.)

Where H is a diagonal plus V V^T with few columns, which is how correlations are mostly kept, A_ij = g_i . v_j: the
errors so far are then summed up in r numbers, s = sum v_j e_j, and a column costs r operations instead of n. g follows
from the columns behind i, by a rank-one update of an r x r matrix for each.

H is regularized: correlations are shrunk towards 0, since few tokens exaggerate them, and a small multiple of the mean
of the diagonal is added (measured in docs/calibration.md). All sums are float64 in a fixed order: what is written must
not depend on the machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.quants.correlations import Correlation

Floats = NDArray[np.float32]

SHRINKAGE = 0.2  # of correlations
DAMPING = 0.003  # of the mean of the diagonal


class Moments(ABC):
    """Regularized second moments of n inputs.

    importance: float32 [n], their diagonal as ggml's quantizers take it.
    weights: float32 [n], D: what the squared error of a column costs when the columns behind it make up for it.
    diagonal: float32 [n], that of H.
    size: how many numbers sum up the errors of a row.
    """

    n: int
    importance: Floats
    weights: Floats
    diagonal: Floats
    size: int

    @abstractmethod
    def ahead(self, first: int, end: int) -> Floats:
        """What the state before the columns [first, end) moves their targets by: coefficients [count, size used]."""

    @abstractmethod
    def within(self, first: int, end: int) -> Floats:
        """What the errors of these columns move the targets of those behind them by: [count, count]."""

    @abstractmethod
    def slope(self, first: int, end: int) -> tuple[Floats, Floats]:
        """Where the loss is least by each of these columns, as moves: coefficients of the present error [count], and of
        the state.
        """

    @abstractmethod
    def slope_within(self, first: int, end: int) -> Floats:
        """What moves of these columns change that by for those behind them: [count, count]."""

    @property
    @abstractmethod
    def factors(self) -> Floats | None:
        """float32 [n, size]: what an error adds to the state; None where the state is the errors themselves."""


class FactoredMoments(Moments):
    """H = diag(rest) + V V^T."""

    def __init__(self, importance: Floats, loadings: Floats, *, shrinkage: float, damping: float) -> None:
        """loadings: as in `Correlation`."""
        self.importance = importance
        self.n, self.size = importance.size, loadings.shape[0] + loadings.shape[0] % 2
        power = importance.astype(np.float64)
        v = np.zeros((self.n, self.size))
        _scale_loadings(loadings, np.sqrt(power * (1 - shrinkage)), v)
        rest = np.empty(self.n)
        g = np.empty_like(v)
        weights, diagonal = np.empty(self.n), np.empty(self.n)
        _eliminate(v, power, damping * _mean(power), rest, g, weights, diagonal)
        self.weights, self.diagonal = weights.astype(np.float32), diagonal.astype(np.float32)
        h = self.diagonal.astype(np.float64)
        self._v, self._g, self._slopes = v, g, v / h[:, None]
        self._factors, self._ahead = v.astype(np.float32), g.astype(np.float32)
        self._own, self._slope = (-rest / h).astype(np.float32), self._slopes.astype(np.float32)
        self._products: dict[tuple[str, int, int], Floats] = {}

    def ahead(self, first: int, end: int) -> Floats:
        return self._ahead[first:end]

    def within(self, first: int, end: int) -> Floats:
        return self._product("ahead", self._g, first, end)

    def slope(self, first: int, end: int) -> tuple[Floats, Floats]:
        return self._own[first:end], self._slope[first:end]

    def slope_within(self, first: int, end: int) -> Floats:
        return self._product("slope", self._slopes, first, end)

    def _product(self, kind: str, a: NDArray[np.float64], first: int, end: int) -> Floats:
        """The products of rows of `a` and of V, which every piece of the matrix needs again."""
        key = kind, first, end
        if key not in self._products:
            self._products[key] = _products(a[first:end], self._v[first:end])
        return self._products[key]

    @property
    def factors(self) -> Floats:
        return self._factors


class WholeMoments(Moments):
    """H with all its elements, float64 [n, n]."""

    def __init__(self, importance: Floats, c: Floats, *, shrinkage: float, damping: float) -> None:
        """c: the correlation matrix, float32 [n, n]."""
        self.importance = importance
        self.n = self.size = importance.size
        power = importance.astype(np.float64)
        root = np.sqrt(power)
        h = c * root[:, None] * root * (1 - shrinkage)
        diagonal = power + damping * _mean(power)
        diagonal[diagonal <= 0] = 1
        h[np.diag_indices(self.n)] = diagonal
        u = np.ascontiguousarray(h[::-1, ::-1])
        _cholesky(u)
        u = u[::-1, ::-1]  # H = U U^T with U upper
        d = np.diagonal(u).copy()
        self._a = np.ascontiguousarray((np.triu(u, 1) / d).T.astype(np.float32))
        self._h = (h / diagonal[:, None]).astype(np.float32)
        self.weights, self.diagonal = (d * d).astype(np.float32), diagonal.astype(np.float32)

    def ahead(self, first: int, end: int) -> Floats:
        return np.ascontiguousarray(self._a[first:end, :first])

    def within(self, first: int, end: int) -> Floats:
        return np.ascontiguousarray(self._a[first:end, first:end])

    def slope(self, first: int, end: int) -> tuple[Floats, Floats]:
        return np.zeros(end - first, np.float32), self._h[first:end]

    def slope_within(self, first: int, end: int) -> Floats:
        return np.ascontiguousarray(self._h[first:end, first:end])

    @property
    def factors(self) -> None:
        return None


def moments_of(
    importance: Floats, correlation: Correlation, *, shrinkage: float = SHRINKAGE, damping: float = DAMPING
) -> Moments:
    """The moments of inputs with these mean squares, float32 [n], and correlations."""
    how: dict[str, Any] = {"shrinkage": shrinkage, "damping": damping}
    if correlation.loadings is not None:
        return FactoredMoments(importance, correlation.loadings, **how)
    return WholeMoments(importance, correlation.matrix(), **how)


@kernel
def _mean(x):
    total = 0.0
    for i in range(x.size):
        total += x[i]
    return total / x.size


@kernel
def _scale_loadings(loadings, roots, v):
    """v [n, size] = loadings^T, each row times its root."""
    for k in range(loadings.shape[0]):
        for j in range(loadings.shape[1]):
            v[j, k] = loadings[k, j] * roots[j]


@kernel
def _eliminate(v, power, damping, rest, g, weights, diagonal):
    """Fill what `FactoredMoments` keeps: see the head of the module. p is the inverse of I + sum v v^T / rest."""
    n, size = v.shape
    p = np.zeros((size, size))
    pv = np.empty(size)
    for k in range(size):
        p[k, k] = 1.0
    for j in range(n - 1, -1, -1):
        held = 0.0
        for k in range(size):
            held += v[j, k] * v[j, k]
        d = max(power[j] - held, 0.0) + damping
        if d <= 0:
            d = 1.0  # an input that was always 0
        rest[j], diagonal[j] = d, d + held
        total = d
        for k in range(size):
            dot = 0.0
            for l in range(size):
                dot += p[k, l] * v[j, l]
            pv[k] = dot
            total += dot * v[j, k]
        weights[j] = total
        for k in range(size):
            g[j, k] = pv[k] / total
            for l in range(size):
                p[k, l] -= pv[k] * pv[l] / total


@kernel
def _products(a, b):
    """float32 [count, count]: a @ b^T of float64 [count, size]."""
    out = np.empty((a.shape[0], b.shape[0]), np.float32)
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            total = 0.0
            for k in range(a.shape[1]):
                total += a[i, k] * b[j, k]
            out[i, j] = total
    return out


@kernel
def _cholesky(a):
    """In place: the lower L of a = L L^T, float64 [n, n]; the upper part is zeroed."""
    n = a.shape[0]
    column = np.empty(n)  # side by side in memory, which a column of the matrix is not
    for j in range(n):
        root = np.sqrt(max(a[j, j], 1e-300))
        a[j, j] = root
        for i in range(j + 1, n):
            a[i, j] /= root
            column[i] = a[i, j]
        for i in range(j + 1, n):
            f = column[i]
            for k in range(j + 1, i + 1):
                a[i, k] -= f * column[k]
        for i in range(j):
            a[i, j] = 0.0
