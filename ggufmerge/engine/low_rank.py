"""The best low-rank approximation of a matrix that is read in chunks of rows and never held: randomized SVD.

Subspace iteration after Halko, Martinsson, Tropp, "Finding structure with randomness" (SIAM Review 53, 2011), algorithm
4.4, turned to the side of the columns so that each iteration takes one pass over the rows: with a random start V
[n, width], V becomes the orthonormalized D^T (D V). Its columns then span, nearly, the leading right singular vectors,
and the SVD of the tall D V gives the factors. The products are float32: singular values below a thousandth of the
largest come out roughly, and those below a 3000th, a ten-millionth of its energy, may be missing.

All sums have a fixed order, so the factors are the same whatever the number of threads. LAPACK is not used: the BLAS
threads inside it would wait for each other while the engine's threads keep the cores busy.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.chunks import chunks_of
from ggufmerge.methods.random import words
from ggufmerge.running.scheduler import Step

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

PASSES = 4  # over the matrix: three iterations and the projection
OVERSAMPLING = 10  # columns beside the rank; Halko et al. recommend 5 to 10
_LANES = 16  # the width is rounded up to whole SIMD registers
_CHUNK = 1 << 20  # values read at a time; part of the result's definition, since sums are cut there


@dataclass(frozen=True)
class LowRank:
    """D ~ left @ right, with the singular values spread evenly over both.

    left: float32 [rows, rank].  right: float32 [rank, n].  energy: sum of the squares of D.  captured: of left @ right.
    """

    left: Floats
    right: Floats
    energy: float
    captured: float


def low_rank(
    rows: int, n: int, rank: int, read: Callable[[int, Floats], None], key: int, advance: Callable[[int], None]
) -> Generator[Step, None, LowRank]:
    """Factors of a matrix D, [rows, n], as a job's steps (`running.scheduler`); `yield from` gives the result.

    rank: at most min(rows, n).  read(start, out): fills `out`, float32 [k, n], with rows [start, start + k) of D; it is
    called by several threads, `PASSES` times for each row.  key: of the random start.
    advance: is told how many values were gone through.
    """
    chunks = chunks_of(rows, n, _CHUNK)
    width = min(-(-(rank + OVERSAMPLING) // _LANES) * _LANES, rows, n)
    v = _random(n, width, key)

    def load(i: int) -> Floats:
        d = np.empty((chunks[i].rows, n), np.float32)
        read(chunks[i].row, d)
        return d

    def iterate(i: int) -> tuple[Floats, int]:
        d = load(i)
        z = np.zeros((n, width), np.float32)
        _add_pulled_back(d, _projected(d, v), z)
        return z, d.size

    for _ in range(PASSES - 1):
        total = yield from _summed(len(chunks), iterate, (n, width), advance)
        v = yield from _in_thread(partial(_directions, total))

    y = np.empty((rows, width), np.float32)
    energy = 0.0

    def project(i: int) -> tuple[float, int]:
        d = load(i)
        y[chunks[i].row : chunks[i].end] = _projected(d, v)
        return _energy(d), d.size

    def count(part: tuple[float, int]) -> None:
        nonlocal energy
        energy += part[0]
        advance(part[1])

    yield Step(len(chunks), project, count)
    left, right, captured = yield from _in_thread(lambda: _factors(y, v, rank))
    return LowRank(left, right, energy, captured)


def _summed(
    count: int, task: Callable[[int], tuple[Floats, int]], shape: tuple[int, int], advance: Callable[[int], None]
) -> Generator[Step, None, Doubles]:
    """A step of `count` tasks, each of which gives a summand and how many values it went through; gives the sum."""
    total = np.zeros(shape, np.float64)

    def add(part: tuple[Floats, int]) -> None:
        np.add(total, part[0], out=total)
        advance(part[1])

    yield Step(count, task, add)
    return total


def _in_thread(task: Callable[[], Any]) -> Generator[Step, None, Any]:
    """A single task as a step, so that the main thread goes on meanwhile; gives its result."""
    results: list[Any] = []
    yield Step(1, lambda _: task(), results.append)
    return results[0]


def _factors(y: Floats, v: Floats, rank: int) -> tuple[Floats, Floats, float]:
    """(left, right, energy) of the best approximation of y @ v^T, where v has orthonormal (or zero) columns.

    With y^T y = W S^2 W^T the left singular vectors are y W / S: left is y W / sqrt(S), right is sqrt(S) (v W)^T.
    """
    tall = y.astype(np.float64)
    squares, w = _eigen(tall)
    squares, w = squares[:rank], w[:, :rank]
    root = squares**0.25
    inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
    left = _projected(tall, w * inverse).astype(np.float32)
    right = _projected(v.astype(np.float64), w * root).T.astype(np.float32)
    return left, np.ascontiguousarray(right), float(squares.sum())


def _directions(z: Doubles) -> Floats:
    """The columns of `_orthonormal` to go on with."""
    return _orthonormal(z).astype(np.float32)


def _orthonormal(z: Doubles) -> Doubles:
    """Orthonormal columns that span what the columns of z, [n, width], span; a zero column for each that is missing."""
    for _ in range(2):  # the second time removes what rounding left in the first
        squares, w = _eigen(z)
        z = _projected(z, w * np.divide(1, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0))
    return z


def _eigen(z: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues, the largest first, and eigenvectors (columns) of z^T z; values that are mere rounding become 0."""
    gram = np.zeros((z.shape[1], z.shape[1]))
    _add_pulled_back(z, z, gram)
    values, vectors = _eigen_of_symmetric(gram)
    order = np.argsort(-values, kind="stable")
    values = values[order]
    return np.where(values > values[0] * 1e-14, values, 0.0), np.ascontiguousarray(vectors[order].T)


def _eigen_of_symmetric(a: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues of a, symmetric [m, m] and overwritten, in no order, and its eigenvectors as rows."""
    scale = float(np.abs(a).max(initial=0.0)) or 1.0  # squares of very small numbers would vanish
    a /= scale
    diagonal, beside, q = np.zeros(len(a)), np.zeros(max(0, len(a) - 1)), np.eye(len(a))
    _tridiagonalize(a, diagonal, beside, q)
    vectors = np.ascontiguousarray(q.T)
    _diagonalize(diagonal, beside, vectors)
    return diagonal * scale, vectors


def _random(n: int, width: int, key: int) -> Floats:
    """float32 [n, width], uniform in [-1, 1)."""
    return (words(np.uint64(key), 0, n * width).astype(np.float32) * np.float32(2**-31) - 1).reshape(n, width)


def _projected(d: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
    y = np.zeros((len(d), v.shape[1]), d.dtype)
    _add_projected(d, v, y)
    return y


@kernel
def _add_projected(d, v, y):  # type: ignore[no-untyped-def]
    """y [k, width] += d [k, n] @ v [n, width]; each sum runs over the columns of d in order."""
    whole = d.shape[0] // 4 * 4
    for i in range(0, whole, 4):  # four rows use each row of v while it is at hand
        for j in range(d.shape[1]):
            d0, d1, d2, d3 = d[i, j], d[i + 1, j], d[i + 2, j], d[i + 3, j]
            for r in range(v.shape[1]):
                x = v[j, r]
                y[i, r] += d0 * x
                y[i + 1, r] += d1 * x
                y[i + 2, r] += d2 * x
                y[i + 3, r] += d3 * x
    for i in range(whole, d.shape[0]):
        for j in range(d.shape[1]):
            for r in range(v.shape[1]):
                y[i, r] += d[i, j] * v[j, r]


@kernel
def _add_pulled_back(d, y, z):  # type: ignore[no-untyped-def]
    """z [n, width] += d^T [n, k] @ y [k, width]; each sum runs over the rows of d in order."""
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            x = d[i, j]
            for r in range(y.shape[1]):
                z[j, r] += x * y[i, r]


@kernel
def _tridiagonalize(a, diagonal, beside, q):  # type: ignore[no-untyped-def]
    """Householder reflections: a, symmetric [m, m], becomes q T q^T, T tridiagonal with `diagonal` [m] and, beside it,
    `beside` [m - 1]. Overwrites a; q at first holds the identity.

    Golub, Van Loan, Matrix Computations, algorithm 8.3.1. The inner loops of all that takes time run along rows and
    not over a sum, so that they vectorize and yet add in one order.
    """
    m = a.shape[0]
    factors, p = np.zeros(m), np.zeros(m)
    for k in range(m - 2):
        v = a[k, k + 1 :]  # the reflection that clears it stays here
        norm = 0.0
        for i in range(v.size):
            norm += v[i] * v[i]
        norm = np.sqrt(norm)
        diagonal[k], beside[k] = a[k, k], v[0]
        if norm == abs(v[0]):
            continue
        beside[k] = -norm if v[0] > 0 else norm
        factors[k] = 1 / (norm * (norm + abs(v[0])))
        v[0] -= beside[k]
        p[:] = 0
        for i in range(v.size):
            for j in range(v.size):
                p[j] += v[i] * a[k + 1 + i, k + 1 + j]
        half = 0.0
        for j in range(v.size):
            p[j] *= factors[k]
            half += p[j] * v[j]
        half *= factors[k] / 2
        for j in range(v.size):
            p[j] -= half * v[j]
        for i in range(v.size):
            x, y = v[i], p[i]
            for j in range(v.size):
                a[k + 1 + i, k + 1 + j] -= x * p[j] + y * v[j]
    for k in range(max(0, m - 2), m):
        diagonal[k] = a[k, k]
    if m > 1:
        beside[m - 2] = a[m - 2, m - 1]
    for k in range(m - 3, -1, -1):  # q = H(0) ... H(m - 3), the last first: the others do not reach its rows
        if factors[k] == 0:
            continue
        p[:] = 0
        for i in range(k + 1, m):
            x = a[k, i] * factors[k]
            for j in range(k + 1, m):
                p[j] += x * q[i, j]
        for i in range(k + 1, m):
            x = a[k, i]
            for j in range(k + 1, m):
                q[i, j] -= x * p[j]


@kernel
def _diagonalize(diagonal, beside, v):  # type: ignore[no-untyped-def]
    """Implicit QR steps with Wilkinson's shift: the symmetric tridiagonal matrix of `diagonal` [m] and `beside` [m - 1]
    becomes diagonal; the rows of v [m, m] turn with it.

    Golub, Van Loan, Matrix Computations, algorithms 8.3.2 and 8.3.3.
    """
    high = diagonal.size - 1
    for _ in range(30 * diagonal.size):  # two steps for an eigenvalue are usual
        for i in range(high):
            if abs(beside[i]) <= 1e-16 * (abs(diagonal[i]) + abs(diagonal[i + 1])):
                beside[i] = 0
        while high > 0 and beside[high - 1] == 0:
            high -= 1
        if high == 0:
            return
        low = high - 1
        while low > 0 and beside[low - 1] != 0:
            low -= 1
        gap, b = (diagonal[high - 1] - diagonal[high]) / 2, beside[high - 1]
        root = np.sqrt(gap * gap + b * b)
        x, z = diagonal[low] - diagonal[high] + b * b / (gap + (root if gap >= 0 else -root)), beside[low]
        for k in range(low, high):
            r = np.sqrt(x * x + z * z)
            c, s = (x / r, z / r) if r > 0 else (1.0, 0.0)
            if k > low:
                beside[k - 1] = r
            d0, d1, e = diagonal[k], diagonal[k + 1], beside[k]
            diagonal[k] = c * c * d0 + 2 * c * s * e + s * s * d1
            diagonal[k + 1] = s * s * d0 - 2 * c * s * e + c * c * d1
            beside[k] = c * s * (d1 - d0) + (c * c - s * s) * e
            if k < high - 1:
                x, z = beside[k], s * beside[k + 1]
                beside[k + 1] *= c
            for j in range(v.shape[1]):
                y0, y1 = v[k, j], v[k + 1, j]
                v[k, j], v[k + 1, j] = c * y0 + s * y1, c * y1 - s * y0


@kernel
def _energy(d):  # type: ignore[no-untyped-def]
    """Sum of squares in float64, row by row."""
    total = 0.0
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            x = np.float64(d[i, j])
            total += x * x
    return total
