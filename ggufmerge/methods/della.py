"""DELLA: drop elements of each difference at random, small ones rather than large ones.

Within each row, the element of the r-th smallest of n magnitudes survives with probability

    density - epsilon + 2 epsilon (r - 1) / (n - 1)

Equal magnitudes are ranked by their position; a row of one element keeps it with probability `density`. The random
words are those of DARE: keyed by seed, tensor and model, counted by element.

Source: Deep, Bhardwaj, Poria, "DELLA-merging" (2024, arXiv:2406.11617).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ggufmerge.methods.dare import AtRandom
from ggufmerge.methods.random import fill_words
from ggufmerge.methods.spec import Chunk, Parameter, Problem, Stack
from ggufmerge.methods.task_vectors import TaskVectors


class AtRandomByRank(AtRandom):
    """Keep each element with a probability that grows with the rank of its magnitude in its row."""

    parameters = (
        *AtRandom.parameters,
        Parameter(
            "epsilon", "model", float, "how far the probability reaches to both sides of the density", 0.15, low=0
        ),
    )

    def check(self, p: Problem) -> None:
        for density, epsilon in zip(p.models["density"], p.models["epsilon"], strict=True):
            if 0 < density < 1 and not (epsilon < density and density + epsilon < 1):
                raise ValueError(
                    f"density {density:g} with epsilon {epsilon:g} gives probabilities outside (0, 1): "
                    f"set `epsilon` below {min(density, 1 - density):g}"
                )

    def density_factors(self, p: Problem) -> NDArray[np.float64]:
        """Ones: by density, `prune` divides each survivor by its own probability."""
        return np.ones(p.others)

    def prune(
        self, x: Stack, first: int, end: int, p: Problem, state: Any, chunk: Chunk, kept: NDArray[np.float32]
    ) -> None:
        start = chunk.start + first * x.shape[2]
        divide = bool(p.shared["rescale"]) and p.shared["rescale_by"] == "density"
        keep_by_rank(x, first, start, p.keys, p.models["density"], p.models["epsilon"], divide, kept)


@njit(nogil=True, cache=True, error_model="numpy")
def keep_by_rank(x, first, start, keys, densities, epsilons, divide, kept):
    """Differences from x[0] that survive, else 0, to `kept`; over their probability of survival when `divide`.

    start: element index of the first value of row `first`. keys: uint64 [models].
    """
    n = kept.shape[2]
    words = np.empty(n, np.uint32)
    magnitudes = np.empty(n, np.float32)
    bits = magnitudes.view(np.uint32)
    order, spare = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(kept.shape[0]):
        density = densities[i]
        if 0.0 < density < 1.0:
            lowest, step = density - epsilons[i], 2.0 * epsilons[i] / max(1, n - 1)
            if n == 1:
                lowest = density
        for r in range(kept.shape[1]):
            model, base, target = x[i + 1, first + r], x[0, first + r], kept[i, r]
            for j in range(n):
                target[j] = model[j] - base[j]
            if density >= 1.0:
                continue
            if density <= 0.0:
                target[:] = np.float32(0.0)
                continue
            for j in range(n):
                magnitudes[j] = abs(target[j])
            sort_indices(bits, order, spare)
            fill_words(keys[i], start + r * n, words)
            for rank in range(n):
                j = order[rank]
                probability = lowest + step * rank
                if np.float64(words[j]) >= np.rint(probability * 4294967296.0):
                    target[j] = np.float32(0.0)
                elif divide:
                    target[j] = np.float32(np.float64(target[j]) / probability)


_DIGIT = 11  # bits; three digits hold a magnitude's 31


@njit(nogil=True, cache=True, error_model="numpy")
def sort_indices(bits, order, spare):
    """Indices that sort `bits`, uint32 below 2^31, equal ones by position, to `order`: a radix sort.

    order, spare: int64 of the same length; `spare` is overwritten.
    """
    size = 1 << _DIGIT
    counts = np.zeros((3, size), np.int64)
    mask = np.uint32(size - 1)
    for i in range(bits.size):
        for digit in range(3):
            counts[digit, (bits[i] >> np.uint32(_DIGIT * digit)) & mask] += 1
    for digit in range(3):
        total = 0
        for b in range(size):
            count = counts[digit, b]
            counts[digit, b] = total
            total += count
    for i in range(bits.size):
        spare[i] = i
    source, target = spare, order
    for digit in range(3):
        place, shift = counts[digit], np.uint32(_DIGIT * digit)
        for i in range(bits.size):
            index = source[i]
            b = (bits[index] >> shift) & mask
            target[place[b]] = index
            place[b] += 1
        source, target = target, source


METHODS = {
    "della": TaskVectors(
        "della",
        "drop elements of the differences at random by rank, rescale, elect signs, average what agrees",
        "DELLA-merging, arXiv:2406.11617",
        AtRandomByRank(),
        vote=True,
        normalize=True,
        rescale=True,
    ),
    "della_linear": TaskVectors(
        "della_linear",
        "drop elements of the differences at random by rank, rescale, add",
        "DELLA-merging, arXiv:2406.11617",
        AtRandomByRank(),
        rescale=True,
    ),
}
