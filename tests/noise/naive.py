"""The kernels of the room in NumPy and plain Python: slow, and plain to read."""

from __future__ import annotations

import math

import numpy as np

from ggufmerge.noise.change import BINS, CLASSES, LARGE


def squared_step(points: np.ndarray, values: np.ndarray, unit: float) -> float:
    """12 times the mean square error of weights that lie anywhere in the cells of `values`, points times `unit`."""
    points = np.sort(points.astype(np.float64) * unit)
    total = 0.0
    for value in values.astype(np.float64):
        k = int(np.argmin(np.abs(points - value)))
        low = (points[k] - points[k - 1]) / 2 if k else (points[1] - points[0]) / 2
        high = (points[k + 1] - points[k]) / 2 if k + 1 < len(points) else (points[-1] - points[-2]) / 2
        total += 12 * (low**3 + high**3) / (3 * (low + high))
    return total / len(values)


def add_pairs(x: np.ndarray, squares: np.ndarray, pairs: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, ...]:
    """As `change.add_pairs` into zeros."""
    sums, same = np.zeros((len(pairs), CLASSES, BINS, 4)), np.zeros((len(pairs), 2))
    rows, groups = x.shape[1], squares.shape[2]
    for p, (a, b) in enumerate(pairs):
        size = x.shape[2] // groups
        difference = (x[a].astype(np.float64) - x[b]) ** 2
        by_group = difference.reshape(rows, groups, -1).sum(axis=2)
        steps = (squares[a].astype(np.float64) + squares[b]) / 2
        by_block = by_group.reshape(-1, blocks[p]).sum(axis=1)
        last = np.arange(by_group.size) % blocks[p] == blocks[p] - 1
        fourth = np.where(last, np.repeat(by_block, blocks[p]) ** 2, 0)
        ratios = by_group.sum(axis=1) / np.maximum(steps.sum(axis=1) * size, 1e-300) / LARGE
        classes = np.where((ratios >= 1) & (steps.sum(axis=1) > 0), np.floor(np.log2(np.maximum(ratios, 1))) + 1, 0)
        classes = np.repeat(np.minimum(classes, CLASSES - 1).astype(int), groups)
        for total, step, square, c in zip(by_group.ravel(), steps.ravel(), fourth, classes, strict=True):
            # a step of 1 is the first of its bin, and each doubling of the square has two bins
            k = 0 if step == 0 else min(max(162 + math.floor(2 * math.log2(step) + 1e-4), 1), BINS - 1)
            sums[p, c, k] += size, total, step * size, square
        same[p] += np.sum(by_block == 0), by_block.size
    return sums, same
