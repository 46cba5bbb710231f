"""TIES: trim each difference to its largest elements, elect a sign per element, and average those that agree.

The k = max(1, int(density · size)) largest magnitudes of the whole tensor survive (none at density 0), exactly k: among
equal magnitudes those with the lower element index (mergekit leaves this open).

Source: Yadav et al., "TIES-merging: resolving interference when merging models" (2023, arXiv:2306.01708).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.selection import EVERYTHING, NOTHING, Cut, largest
from ggufmerge.methods.spec import Chunk, Passes, Problem, Stack
from ggufmerge.methods.task_vectors import DENSITY, Pruner, TaskVectors

# of what is kept, [models, 2]: the cuts that are excluded and included, as bits and as last elements
Bounds = tuple[NDArray[np.uint32], NDArray[np.int64]]


def mostly_rounding(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which differences have less than half of their square from changes, so that magnitudes do not tell these."""
    return shares < 0.5


class ByMagnitude(Pruner[Bounds]):
    """Keep the elements between two ranks of magnitude."""

    parameters: tuple[Parameter, ...] = (DENSITY,)

    def ranks(self, p: Problem, i: int) -> tuple[int, int]:
        """(from, to): model i keeps the elements from-th (counted from 0) to to-th (excluded) by falling magnitude."""
        density = p.models["density"][i]
        return 0, max(1, int(density * p.shape[0] * p.shape[1])) if density > 0 else 0

    def keeps_all(self, p: Problem) -> NDArray[np.bool_]:
        return p.models["density"] >= 1

    def keeps_none(self, p: Problem) -> NDArray[np.bool_]:
        return p.models["density"] <= 0

    def heeded(self, p: Problem) -> str:
        trimmed = (p.models["density"] > 0) & (p.models["density"] < 1) & (p.models["weight"] != 0)
        return "nothing is trimmed where a difference is mostly rounding" if trimmed.any() else ""

    def with_signal(self, p: Problem, shares: NDArray[np.float64]) -> Problem:
        """With density 1 where a difference is mostly rounding: how large it is says nothing then of the change of an
        element, and trimming by it loses change.
        """
        density = p.models["density"]
        whole = np.where((density > 0) & mostly_rounding(shares), 1.0, density)
        return replace(p, models={**p.models, "density": whole})

    def passes(self, p: Problem) -> Passes[Bounds]:
        """State: the bounds of what is kept, [models] each: excluded and included cut, as bits and last elements."""
        wanted = []
        pruned = np.flatnonzero(~self.keeps_all(p) & (p.models["weight"] != 0))
        for i in pruned:
            wanted += [(int(i), rank) for rank in self.ranks(p, int(i))]
        cuts = iter((yield from largest(magnitudes, p.shape[0] * p.shape[1], wanted)))
        bounds: list[tuple[Cut, Cut]] = [(NOTHING, EVERYTHING)] * p.others
        for i in pruned:
            bounds[i] = next(cuts), next(cuts)
        return (
            np.array([[cut.bits for cut in pair] for pair in bounds], np.uint32),
            np.array([[cut.last for cut in pair] for pair in bounds], np.int64),
        )

    def prune(
        self, x: Stack, first: int, end: int, p: Problem, state: Bounds, chunk: Chunk, kept: NDArray[np.float32]
    ) -> None:
        bits, last = state
        keep_between(x, first, chunk.start + first * x.shape[2], bits, last, kept, kept.view(np.uint32))


def magnitudes(x: Stack, chunk: Chunk, first: int, end: int) -> NDArray[np.float32]:
    """|Wᵢ - base| of rows [first, end), float32 [models, elements]."""
    out = np.empty((x.shape[0] - 1, end - first, x.shape[2]), np.float32)
    absolute_differences(x, first, out)
    return out.reshape(len(out), -1)


@kernel
def absolute_differences(x, first, out):
    """out[i, r] = |x[i + 1, first + r] - x[0, first + r]|."""
    for i in range(out.shape[0]):
        for r in range(out.shape[1]):
            model, base, target = x[i + 1, first + r], x[0, first + r], out[i, r]
            for j in range(target.size):
                target[j] = abs(model[j] - base[j])


@kernel
def keep_between(x, first, start, bits, last, kept, kept_bits):
    """Differences from x[0] whose magnitude lies beyond the excluded and within the included cut, else 0, to `kept`.

    start: element index of the first value of row `first`. bits, last: uint32 and int64 [models, 2], the excluded and
    the included cut of each model. kept_bits: the memory of `kept` as uint32.
    """
    for i in range(kept.shape[0]):
        outer, outer_last = bits[i, 0], last[i, 0]
        inner, inner_last = bits[i, 1], last[i, 1]
        for r in range(kept.shape[1]):
            model, base, target, pattern = x[i + 1, first + r], x[0, first + r], kept[i, r], kept_bits[i, r]
            at = start + r * kept.shape[2]
            for j in range(target.size):
                target[j] = model[j] - base[j]
            for j in range(target.size):
                magnitude = pattern[j] & np.uint32(0x7FFFFFFF)
                excluded = (magnitude > outer) | (magnitude == outer) & (at + j <= outer_last)
                included = (magnitude > inner) | (magnitude == inner) & (at + j <= inner_last)
                pattern[j] = pattern[j] if included & ~excluded else np.uint32(0)


METHODS = {
    "ties": TaskVectors(
        "ties",
        "trim the differences to their largest elements, elect signs, average what agrees",
        "TIES-merging, arXiv:2306.01708",
        ByMagnitude(),
        vote=True,
        normalize=True,
        rescale=False,
        advice="Fine-tunes of one base that pull in different directions: small changes are left out, then "
        "the majority decides.",
        example=(("weight", 0.5), ("density", 0.5)),
    )
}
