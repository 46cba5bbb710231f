"""DARE: drop elements of each difference at random, rescale the rest, then add up with or without the vote of TIES.

Each element survives with probability `density`, independently. The mask comes from a counter-based generator keyed by
seed, tensor and model and counted by element, so it is the same for every order, thread count and chunk size.

Source: Yu et al., "Language models are super Mario" (2023, arXiv:2311.03099).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.random import fill_words, threshold
from ggufmerge.methods.spec import Chunk, Problem, Stack
from ggufmerge.methods.task_vectors import DENSITY, Pruner, TaskVectors, raised


class AtRandom(Pruner[None]):
    """Keep each element with probability `density`."""

    parameters: tuple[Parameter, ...] = (DENSITY,)

    def keeps_all(self, p: Problem) -> NDArray[np.bool_]:
        return p.models["density"] >= 1

    def keeps_none(self, p: Problem) -> NDArray[np.bool_]:
        return p.models["density"] <= 0

    def heeded(self, p: Problem) -> str:
        density = p.models["density"]
        dropped = (density > 0) & (density < 1) & (p.models["weight"] != 0)
        return (
            "density is raised where a difference is mostly rounding" if p.shared["rescale"] and dropped.any() else ""
        )

    def with_signal(self, p: Problem, shares: NDArray[np.float64]) -> Problem:
        """With densities at which dropping adds no more chance than it would without rounding errors.

        To drop at density p and to rescale adds d^2 (1 - p) / p to the variance of an element, d^2 being the square of
        the whole difference. For as much as the change alone would add, (1 - p) / p has to be times its share of d^2.
        """
        return replace(p, models={**p.models, "density": raised(p.models["density"], shares)})

    def prune(
        self, x: Stack, first: int, end: int, p: Problem, state: None, chunk: Chunk, kept: NDArray[np.float32]
    ) -> None:
        keep_at_random(x, first, chunk.start + first * x.shape[2], p.keys, threshold(p.models["density"]), kept)


@kernel
def keep_at_random(x, first, start, keys, thresholds, kept):
    """Differences from x[0] where the random word of the element is below the model's threshold, else 0, to `kept`.

    start: element index of the first value of row `first`. keys, thresholds: uint64 [models].
    """
    words = np.empty(kept.shape[2], np.uint32)
    for i in range(kept.shape[0]):
        below = thresholds[i]
        for r in range(kept.shape[1]):
            fill_words(keys[i], start + r * kept.shape[2], words)
            model, base, target = x[i + 1, first + r], x[0, first + r], kept[i, r]
            for j in range(target.size):
                target[j] = model[j] - base[j] if np.uint64(words[j]) < below else np.float32(0.0)


METHODS = {
    "dare_linear": TaskVectors(
        "dare_linear",
        "drop elements of the differences at random, rescale, add",
        "DARE, arXiv:2311.03099",
        AtRandom(),
        rescale=True,
        advice="Fine-tunes from F16 or Q8_0 files with many small changes. From 4 bits more is kept than density says.",
        example=(("weight", 0.5), ("density", 0.5)),
    ),
    "dare_ties": TaskVectors(
        "dare_ties",
        "drop elements of the differences at random, rescale, elect signs, add what agrees",
        "DARE, arXiv:2311.03099",
        AtRandom(),
        vote=True,
        rescale=True,
        advice="As dare_linear, where the fine-tunes pull in different directions.",
        example=(("weight", 0.5), ("density", 0.5)),
    ),
}
