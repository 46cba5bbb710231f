"""How inputs go together, gathered from texts of any length in memory that does not grow with them.

For n inputs the second moments H = sum x x^T are n x n, too large to keep for all weights of a model. Their largest
eigenvectors can be had from Y = H W with a random W of a few times as many columns: H is close to Y (W^T Y)^-1 Y^T
(Nyström's approximation; Tropp et al. 2017, arXiv:1706.05736). Y adds up text by text. Inputs are scaled by what they
are in the first piece of text, so that large ones do not drown the others, and at the end by what they are in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ggufmerge.quants.correlations import Correlation, largest_of, triangle_of

OVERSAMPLING = 3  # columns of W for each eigenvector that is wanted
_SEED = 20261129
_FLOOR = 1e-3  # of the median of the mean squares, below which inputs are not scaled up further
_NOISE = 1e-5  # of the largest eigenvalue of W^T Y, below which they are rounding errors of float32

Part = tuple[int, NDArray[np.float32]]  # a matrix, and what it is multiplied with: [tokens, n]


class Sums:
    """Sums of squared inputs and how many inputs there were, for the matrices of a weight.

    sums: float64 [matrices, n].  counts: float64 [matrices].
    """

    def __init__(self, n: int, matrices: int) -> None:
        self.sums, self.counts = np.zeros((matrices, n)), np.zeros(matrices)

    def add(self, parts: Sequence[Part], weight: float) -> None:
        """Count inputs in, each `weight` times."""
        for matrix, x in parts:
            self.sums[matrix] += weight * np.einsum("ij,ij->j", x, x).astype(np.float64)
            self.counts[matrix] += weight * len(x)

    def correlations(self) -> tuple[Correlation, ...] | None:
        """Of the inputs of each matrix; None when they were not gathered."""
        return None

    @property
    def state(self) -> dict[str, NDArray]:
        """All that was gathered, to be kept and put back in place."""
        return {"sums": self.sums, "counts": self.counts}

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Go on from a `state`."""
        for key, array in self.state.items():
            array[...] = state[key]

    def _roots(self, matrix: int) -> NDArray[np.float64]:
        """The roots of the sums of squares of a matrix: float64 [n], 1 for inputs that are all 0."""
        return np.sqrt(np.where(self.sums[matrix] > 0, self.sums[matrix], 1))


class Sketch(Sums):
    """With the `rank` largest eigenvectors of the correlations."""

    def __init__(self, n: int, matrices: int, rank: int) -> None:
        super().__init__(n, matrices)
        self._rank, self._width = min(rank, n), sketch_width(n, rank)
        self._scale = np.zeros(n, np.float32)  # zeros until the first inputs
        self._products = np.zeros((matrices, n, self._width), np.float32)  # Y
        self._random = _directions(n, self._width)

    def add(self, parts: Sequence[Part], weight: float) -> None:
        super().add(parts, weight)
        if not self._scale.any():
            self._scale[:] = _scale_of(self.sums.sum(axis=0), self.counts.sum())
        if not np.isfinite(self.sums).all():
            return  # the model is broken, which the sums tell
        for matrix, x in parts:
            scaled = x * self._scale
            self._products[matrix] += np.float32(weight) * (scaled.T @ (scaled @ self._random))

    def correlations(self) -> tuple[Correlation, ...]:
        return tuple(Correlation(loadings=self._loadings(matrix)) for matrix in range(len(self.counts)))

    def _loadings(self, matrix: int) -> NDArray[np.float32]:
        y, w = self._products[matrix].astype(np.float64), self._random.astype(np.float64)
        values, vectors = np.linalg.eigh(_symmetric(w.T @ y))
        kept = values > max(_NOISE * values[-1], np.finfo(np.float64).tiny)
        if not kept.any():  # an expert that no token has met
            return np.zeros((self._rank, y.shape[0]), np.float32)
        factor = (y @ vectors[:, kept]) / np.sqrt(values[kept])
        unscaled = self._scale.astype(np.float64) * self._roots(matrix)
        found = largest_of((factor / unscaled[:, None]).T, self._rank)
        found[:, self.sums[matrix] == 0] = 0
        return found

    @property
    def state(self) -> dict[str, NDArray]:
        return {**super().state, "scale": self._scale, "products": self._products}


class Whole(Sums):
    """With the whole matrix of correlations, which takes 4 n^2 bytes for each matrix."""

    def __init__(self, n: int, matrices: int) -> None:
        super().__init__(n, matrices)
        self._moments = np.zeros((matrices, n, n), np.float32)

    def add(self, parts: Sequence[Part], weight: float) -> None:
        super().add(parts, weight)
        for matrix, x in parts:
            self._moments[matrix] += np.float32(weight) * (x.T @ x)

    def correlations(self) -> tuple[Correlation, ...]:
        return tuple(Correlation(triangle=self._triangle(matrix)) for matrix in range(len(self.counts)))

    def _triangle(self, matrix: int) -> NDArray[np.int8]:
        root = self._roots(matrix).astype(np.float32)
        c = self._moments[matrix] / root[:, None] / root
        c[np.diag_indices(len(c))] = 1
        return triangle_of(c)

    @property
    def state(self) -> dict[str, NDArray]:
        return {**super().state, "moments": self._moments}


def sketch_width(n: int, rank: int) -> int:
    """Columns of a sketch for the `rank` largest eigenvectors of n inputs."""
    return min(OVERSAMPLING * rank, n)


_known: dict[tuple[int, int], NDArray[np.float32]] = {}


def _directions(n: int, width: int) -> NDArray[np.float32]:
    """W: float32 [n, width], orthonormal columns, always the same; for all inputs of a size."""
    if (n, width) not in _known:
        random = np.random.default_rng(_SEED).standard_normal((n, width))
        _known[n, width] = (np.eye(n) if width == n else np.linalg.qr(random)[0]).astype(np.float32)
    return _known[n, width]


def _scale_of(sums: NDArray[np.float64], count: float) -> NDArray[np.float32]:
    """What inputs are multiplied by to have about the same size: float32 [n]."""
    means = sums / max(count, 1)
    alive = means[means > 0]
    floor = _FLOOR * np.median(alive) if alive.size else 1.0
    return (1 / np.sqrt(np.maximum(means, floor))).astype(np.float32)


def _symmetric(a: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a + a.T) / 2
