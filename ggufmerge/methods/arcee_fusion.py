"""Arcee fusion: take from the other model only the elements that matter most, and leave the base elsewhere.

    importance = |other - base| · KL(softmax(other's row) ‖ softmax(base's row))
    threshold  = median + 1.5 · (third - first quartile) of the importances of the tensor

Elements whose importance reaches the threshold come from the other model. Quartiles are exact, the values at positions
⌊q (n - 1)⌋ of the sorted importances; mergekit draws a random million of them for larger tensors.

Source: mergekit (Arcee AI, 2024).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.selection import largest
from ggufmerge.methods.spec import Chunk, Method, Pass, Passes, Problem, Stack

NO_PROBABILITY = 1e-8  # added to each


class ArceeFusion(Method[tuple[NDArray[np.float64], float]]):
    name = "arcee_fusion"
    summary = "take the elements that matter most from the other model"
    reference = "Arcee AI 2024"
    advice = "One fine-tune into another model, only where it differs most; there is nothing to set."
    example_models = 1
    max_models = 1
    pair = True

    def passes(self, p: Problem) -> Passes[tuple[NDArray[np.float64], float]]:
        """Statistics: divergence of each row, float64 [rows], and the threshold."""

        def divergences(x: Stack, chunk: Chunk) -> NDArray[np.float64]:
            out = np.empty(x.shape[1])
            row_divergences(x, out)
            return out

        def append(so_far: list[NDArray[np.float64]], rows: NDArray[np.float64]) -> list[NDArray[np.float64]]:
            so_far.append(rows)
            return so_far

        found: list[NDArray[np.float64]] = []
        rows = yield from Pass(divergences, append, found).read()
        divergence = np.concatenate(rows or [np.empty(0)])

        def importances(x: Stack, chunk: Chunk, first: int, end: int) -> NDArray[np.float32]:
            out = np.empty((end - first, x.shape[2]), np.float32)
            row_importances(x, first, divergence[chunk.row + first :], out)
            return out.reshape(1, -1)

        elements = p.shape[0] * p.shape[1]
        ranks = [elements - quarters * (elements - 1) // 4 for quarters in (1, 2, 3)]  # counted from the largest
        cuts = yield from largest(importances, elements, [(0, rank) for rank in ranks])
        first, median, third = (cut.value for cut in cuts)
        return divergence, median + 1.5 * (third - first)

    def combine(
        self,
        x: Stack,
        p: Problem,
        statistics: tuple[NDArray[np.float64], float],
        chunk: Chunk,
        out: NDArray[np.float32],
    ) -> None:
        divergence, threshold = statistics
        importance = np.empty(x.shape[1:], np.float32)
        row_importances(x, 0, divergence[chunk.row :], importance)
        np.copyto(out, np.where(importance >= np.float32(threshold), x[1], x[0]))


@kernel
def row_divergences(x, out):
    """Kullback-Leibler divergence of the softmax of each row of x[1] from that of x[0], in nats."""
    n = x.shape[2]
    p, q = np.empty(n), np.empty(n)
    for r in range(x.shape[1]):
        _softmax(x[1, r], p)
        _softmax(x[0, r], q)
        total = 0.0
        for j in range(n):
            total += p[j] * math.log(p[j] / q[j])
        out[r] = total


@kernel
def _softmax(values, out):
    """Softmax of `values`, float32 [n], plus NO_PROBABILITY, to `out`, float64."""
    top = values[0] if values.size else np.float32(0.0)
    for j in range(values.size):
        top = max(top, values[j])
    total = 0.0
    for j in range(values.size):
        out[j] = math.exp(np.float64(values[j]) - np.float64(top))
        total += out[j]
    for j in range(values.size):
        out[j] = out[j] / total + NO_PROBABILITY


@kernel
def row_importances(x, first, divergence, out):
    """out[r] = |x[1, first + r] - x[0, first + r]| divergence[r], never below zero."""
    for r in range(out.shape[0]):
        base, other, target = x[0, first + r], x[1, first + r], out[r]
        factor = np.float32(max(divergence[r], 0.0))
        for j in range(target.size):
            target[j] = abs(other[j] - base[j]) * factor


METHODS = {"arcee_fusion": ArceeFusion()}
