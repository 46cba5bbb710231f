"""DELLA: drop elements of each difference at random, small ones rather than large ones.

Within each row, the element of the r-th smallest of n magnitudes survives with probability

    density - epsilon + 2 epsilon (r - 1) / (n - 1)

Equal magnitudes are ranked by their position; a row of one element keeps it with probability `density`. The random
words are those of DARE: keyed by seed, tensor and model, counted by element.

Source: Deep, Bhardwaj, Poria, "DELLA-merging" (2024, arXiv:2406.11617).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.dare import AtRandom
from ggufmerge.methods.parameters import ClashError, Parameter
from ggufmerge.methods.random import fill_words
from ggufmerge.methods.spec import Chunk, Problem, Stack
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
                raise ClashError(
                    f"density {density:g} with epsilon {epsilon:g} gives probabilities outside (0, 1): "
                    f"set `epsilon` below {min(density, 1 - density):g}",
                    "epsilon",
                )

    def with_signal(self, p: Problem, shares: NDArray[np.float64]) -> Problem:
        """As for DARE; the probabilities reach less far from the density, as there is less room above it."""
        found = super().with_signal(p, shares)
        room = 1.0 - p.models["density"]
        narrowed = np.divide(1.0 - found.models["density"], room, out=np.ones_like(room), where=room > 0)
        return replace(found, models={**found.models, "epsilon": p.models["epsilon"] * narrowed})

    def density_factors(self, p: Problem) -> NDArray[np.float64]:
        """Ones: by density, `prune` divides each survivor by its own probability."""
        return np.ones(p.others)

    def prune(
        self, x: Stack, first: int, end: int, p: Problem, state: None, chunk: Chunk, kept: NDArray[np.float32]
    ) -> None:
        start = chunk.start + first * x.shape[2]
        divide = bool(p.shared["rescale"]) and p.shared["rescale_by"] == "density"
        keep_by_rank(x, first, start, p.keys, p.models["density"], p.models["epsilon"], divide, kept)


@kernel
def keep_by_rank(x, first, start, keys, densities, epsilons, divide, kept):
    """Differences from x[0] that survive, else 0, to `kept`; over their probability of survival when `divide`.

    start: element index of the first value of row `first`. keys: uint64 [models].
    """
    n = kept.shape[2]
    words = np.empty(n, np.uint32)
    magnitudes = np.empty(n, np.float32)
    ranks = np.empty(n, np.uint32)
    scratch = np.empty((2, n), np.uint64)
    for i in range(kept.shape[0]):
        density = densities[i]
        lowest, step = density, 0.0
        if n > 1:
            lowest, step = density - epsilons[i], 2.0 * epsilons[i] / (n - 1)
        for r in range(kept.shape[1]):
            model, base, target = x[i + 1, first + r], x[0, first + r], kept[i, r]
            for j in range(target.size):
                target[j] = model[j] - base[j]
            if density >= 1.0:
                continue
            if density <= 0.0:
                target[:] = np.float32(0.0)
                continue
            for j in range(magnitudes.size):
                magnitudes[j] = abs(target[j])
            rank(magnitudes.view(np.uint32), ranks, scratch)
            fill_words(keys[i], start + r * n, words)
            if divide:
                for j in range(ranks.size):
                    target[j] = np.float32(np.float64(target[j]) / (lowest + step * np.float64(ranks[j])))
            for j in range(ranks.size):
                below = np.rint((lowest + step * np.float64(ranks[j])) * 4294967296.0)
                target[j] = target[j] if np.float64(words[j]) < below else np.float32(0.0)


_DIGIT = 11  # bits; three digits hold a magnitude's 31


@kernel
def rank(bits, ranks, scratch):
    """How many of `bits`, uint32 [n] below 2^31, are smaller than each, or equal and to its left, to `ranks`.

    A radix sort of the values with their places. scratch: uint64 [2, n].
    """
    size = 1 << _DIGIT
    low, middle, high = np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32)
    mask, digit = np.uint32(size - 1), np.uint32(_DIGIT)
    for i in range(bits.size):
        low[bits[i] & mask] += 1
        middle[(bits[i] >> digit) & mask] += 1
        high[bits[i] >> (digit + digit)] += 1
    for counts in (low, middle, high):
        total = np.int32(0)
        for b in range(size):
            count = counts[b]
            counts[b] = total
            total += count
    once, twice = scratch[0], scratch[1]
    half = np.uint64(32)
    for i in range(bits.size):
        slot = bits[i] & mask
        once[low[slot]] = np.uint64(bits[i]) << half | np.uint64(i)
        low[slot] += 1
    for i in range(bits.size):
        slot = np.uint32(once[i] >> half) >> digit & mask
        twice[middle[slot]] = once[i]
        middle[slot] += 1
    for i in range(bits.size):
        slot = np.uint32(twice[i] >> half) >> (digit + digit)
        ranks[np.uint32(twice[i])] = high[slot]
        high[slot] += 1


METHODS = {
    "della": TaskVectors(
        "della",
        "drop elements of the differences at random by rank, rescale, elect signs, average what agrees",
        "DELLA-merging, arXiv:2406.11617",
        AtRandomByRank(),
        vote=True,
        normalize=True,
        rescale=True,
        advice="As dare_ties, with more care: large changes are kept rather than small ones.",
        example=(("weight", 0.5), ("density", 0.5)),
    ),
    "della_linear": TaskVectors(
        "della_linear",
        "drop elements of the differences at random by rank, rescale, add",
        "DELLA-merging, arXiv:2406.11617",
        AtRandomByRank(),
        rescale=True,
        advice="As dare_linear, with more care: large changes are kept rather than small ones.",
        example=(("weight", 0.5), ("density", 0.5)),
    ),
}
