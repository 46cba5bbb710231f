"""Methods whose result is a linear combination of the inputs: which numbers they need, and how the sum is formed.

Linear, SLERP, NuSLERP, MultiSLERP, Karcher mean, model stock and plain task arithmetic differ only in the coefficients.
Those follow from the inputs' inner products: one pass gathers the Gram matrix in float64, scalar arithmetic gives the
coefficients, and `combine` adds up. Sums are formed in float64 and rounded once, so that a model merged with itself
comes out to the bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.spec import Chunk, Method, Pass, Passes, Problem, Stack, Statistics
from ggufmerge.methods.sums import LANES, add_rows, exact_sum, lane_total

Coefficients = NDArray[np.float64]  # of the inputs, [inputs]


class Combination(Method[Statistics]):
    """A method whose `statistics` are the coefficients of the inputs, float64 [inputs], or hold them."""

    def coefficients(self, statistics: Statistics) -> Coefficients:
        return np.asarray(statistics)

    def combine(self, x: Stack, p: Problem, statistics: Statistics, chunk: Chunk, out: NDArray[np.float32]) -> None:
        weighted_sum(x, self.coefficients(statistics)[None, :], out)


def gram(p: Problem, deltas: bool = False) -> Passes[NDArray[np.float64]]:
    """Gram matrix of the inputs of the whole tensor, float64 [inputs, inputs]: one pass.

    deltas: of the differences from the base instead, float64 [inputs - 1, inputs - 1].
    """
    size = p.inputs - deltas

    def of_rows(x: Stack, chunk: Chunk) -> NDArray[np.float64]:
        out = np.empty((x.shape[1], size, size), np.float64)
        row_grams(x, deltas, out)
        return out

    return (yield from Pass(of_rows, add_rows, np.zeros((size, size))).read())


def inner_product(a: NDArray[np.float64], b: NDArray[np.float64], products: NDArray[np.float64]) -> float:
    """<Σ aᵢ xᵢ, Σ bᵢ xᵢ> of inputs with this Gram matrix."""
    return exact_sum((np.outer(a, b) * products).reshape(-1))


@kernel
def row_grams(x, deltas, out):
    """Gram matrix of each row of x, float32 [inputs, rows, n], or of its differences from x[0], to `out`, float64
    [rows, m, m]."""
    first = 1 if deltas else 0
    m = x.shape[0] - first
    n = x.shape[2]
    values = np.zeros((m, LANES), np.float64)
    sums = np.empty((m, m, LANES), np.float64)
    for r in range(x.shape[1]):
        sums[:] = 0.0
        for start in range(0, n, LANES):
            end = min(start + LANES, n)
            base = x[0, r, start:end]
            for i in range(m):
                given, value = x[i + first, r, start:end], values[i]
                if deltas:
                    for l in range(given.size):
                        value[l] = np.float64(given[l]) - np.float64(base[l])
                else:
                    for l in range(given.size):
                        value[l] = np.float64(given[l])
                value[given.size :] = 0.0
            for i in range(m):
                for k in range(i + 1):
                    accumulate_products(values[i], values[k], sums[i, k])
        for i in range(m):
            for k in range(i + 1):
                out[r, i, k] = lane_total(sums[i, k])
                out[r, k, i] = out[r, i, k]


@kernel
def accumulate_products(a, b, sums):
    """sums += a * b, lane by lane."""
    for l in range(LANES):
        sums[l] += a[l] * b[l]


_BLOCK = 512


@kernel
def weighted_sum(x, coefficients, out):
    """out = Σ coefficients[i] x[i] for x float32 [inputs, rows, n], in float64 and rounded once.

    coefficients: float64 [1, inputs] for all rows, or [rows, inputs]. An input with coefficient zero is not read, so
    its infinities cannot reach the result.
    """
    sums = np.empty(_BLOCK, np.float64)
    for r in range(x.shape[1]):
        c = coefficients[r if coefficients.shape[0] > 1 else 0]
        used = np.flatnonzero(c)
        for start in range(0, x.shape[2], _BLOCK):
            target = out[r, start : start + _BLOCK]
            total = sums[: target.size]
            total[:] = 0.0
            for u in range(0, used.size - 1, 2):
                a, b = x[used[u], r, start : start + _BLOCK], x[used[u + 1], r, start : start + _BLOCK]
                ca, cb = c[used[u]], c[used[u + 1]]
                for j in range(target.size):
                    total[j] += ca * np.float64(a[j]) + cb * np.float64(b[j])
            if used.size % 2:
                a, ca = x[used[-1], r, start : start + _BLOCK], c[used[-1]]
                for j in range(target.size):
                    total[j] += ca * np.float64(a[j])
            for j in range(target.size):
                target[j] = np.float32(total[j])


@kernel
def weighted_columns(x, coefficients, out):
    """out[:, j] = Σ coefficients[i, j] x[i, :, j], in float64 and rounded once; coefficients: float64 [inputs, n]."""
    sums = np.empty(x.shape[2], np.float64)
    for r in range(x.shape[1]):
        sums[:] = 0.0
        for i in range(x.shape[0]):
            given, c = x[i, r], coefficients[i]
            for j in range(sums.size):
                sums[j] += c[j] * np.float64(given[j])
        target = out[r]
        for j in range(sums.size):
            target[j] = np.float32(sums[j])


@kernel
def add_column_grams(x, deltas, total):
    """total[i, k, j] += Σ over the rows, in their order, of x[i, :, j] x[k, :, j], or of differences from x[0]."""
    first = 1 if deltas else 0
    for r in range(x.shape[1]):
        base = x[0, r]
        for i in range(first, x.shape[0]):
            for k in range(first, i + 1):
                a, b, target = x[i, r], x[k, r], total[i - first, k - first]
                if deltas:
                    for j in range(target.size):
                        u, v, w = np.float64(a[j]), np.float64(b[j]), np.float64(base[j])
                        target[j] += (u - w) * (v - w)
                else:
                    for j in range(target.size):
                        target[j] += np.float64(a[j]) * np.float64(b[j])
