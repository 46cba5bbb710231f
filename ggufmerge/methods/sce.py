"""SCE: select the elements on which the models differ most, calculate weights, erase minority signs.

    select      the int(select_topk · m) elements of largest variance across the models, m those whose variance is not 0
    calculate   model i weighs qᵢ = mean dᵢ² / Σ mean dₖ², dᵢ its selected difference from the base
    erase       per element, only the models whose dᵢ has the sign of Σ dᵢ (zero counts as plus) take part

and base + Σ qᵢ dᵢ / Σ qᵢ over those. mergekit falls back to equal weights when Σ mean dₖ² is below 1e-6, as it is for
many ordinary fine-tunes; here the weights are always what the formula says.

Source: Wan et al., "FuseChat: knowledge fusion of chat models" (2024, arXiv:2408.07990).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.selection import EVERYTHING, NOTHING, Cut, largest, row_groups
from ggufmerge.methods.spec import Chunk, Method, Pass, Passes, Problem, Stack
from ggufmerge.methods.sums import LANES, add_rows, exact_sum, lane_total

NO_DIVISOR = 1e-6  # a sum of weights below it counts as this


class Sce(Method[tuple[Cut, NDArray[np.float64]]]):
    name = "sce"
    summary = "weigh the differences by their energy where the models differ most, erase minority signs"
    reference = "FuseChat, arXiv:2408.07990"
    advice = "Fine-tunes of one base when nobody knows their weights: the method finds them tensor by tensor."
    example = (("select_topk", 0.5),)
    parameters = (
        Parameter(
            "select_topk", "shared", float, "share of the elements with the largest variance", 1.0, low=0, high=1
        ),
    )

    def untouched(self, p: Problem) -> int | None:
        share = p.number("select_topk")
        if share == 0 or (share < 1 and p.others == 1):  # one model does not vary
            return 0
        return 1 if p.others == 1 else None

    def passes(self, p: Problem) -> Passes[tuple[Cut, NDArray[np.float64]]]:
        """Statistics: the cut of the selection, and the weights, float64 [models]."""
        share = p.number("select_topk")
        cut = EVERYTHING if share >= 1 else NOTHING
        if 0 < share < 1:
            wanted = [(0, lambda varying: int(varying * share))]
            (cut,) = yield from largest(variances, p.shape[0] * p.shape[1], wanted)

        def energies(x: Stack, chunk: Chunk) -> NDArray[np.float64]:
            sums = np.empty((x.shape[1], p.others))
            for first, end, selected in _selected(x, chunk, cut):
                row_energies(x, first, selected, sums[first:end])
            return sums

        energy = yield from Pass(energies, add_rows, np.zeros(p.others)).read()
        total = exact_sum(energy)
        return cut, energy / total if total > 0 else np.zeros(p.others)

    def combine(
        self,
        x: Stack,
        p: Problem,
        statistics: tuple[Cut, NDArray[np.float64]],
        chunk: Chunk,
        out: NDArray[np.float32],
    ) -> None:
        cut, weights = statistics
        for first, _, selected in _selected(x, chunk, cut):
            add_elected(x, first, selected, weights, out)


def variances(x: Stack, chunk: Chunk, first: int, end: int) -> NDArray[np.float32]:
    """Population variance across the models of rows [first, end), float32 [1, elements]."""
    out = np.empty((end - first, x.shape[2]), np.float32)
    variance_of_differences(x, first, out)
    return out.reshape(1, -1)


def _selected(x: Stack, chunk: Chunk, cut: Cut):
    """Which elements of a chunk are selected, by groups of rows: (first row, end row, bool [rows, n])."""
    for first, end in row_groups(x):
        selected = np.ones((end - first, x.shape[2]), bool)
        if cut != EVERYTHING:
            bits = variances(x, chunk, first, end)[0].view(np.uint32)
            select(bits, chunk.start + first * x.shape[2], np.uint32(cut.bits), cut.last, selected.reshape(-1))
        yield first, end, selected


@kernel
def select(bits, start, cut, last, selected):
    """selected[i] = whether element start + i of value `bits[i]` is within the cut."""
    for i in range(selected.size):
        selected[i] = (bits[i] > cut) | (bits[i] == cut) & (start + i <= last)


@kernel
def variance_of_differences(x, first, out):
    """Population variance of x[1:, first + r] - x[0, first + r], to out[r]."""
    models = x.shape[0] - 1
    mean, squares = np.empty(out.shape[1]), np.empty(out.shape[1])
    for r in range(out.shape[0]):
        base, target = x[0, first + r], out[r]
        mean[:] = 0.0
        squares[:] = 0.0
        for i in range(models):
            model = x[i + 1, first + r]
            for j in range(mean.size):
                mean[j] += np.float64(model[j] - base[j])
        for j in range(mean.size):
            mean[j] /= models
        for i in range(models):
            model = x[i + 1, first + r]
            for j in range(mean.size):
                away = np.float64(model[j] - base[j]) - mean[j]
                squares[j] += away * away
        for j in range(mean.size):
            target[j] = np.float32(squares[j] / models)


@kernel
def row_energies(x, first, selected, out):
    """Row by row, Σ (x[i + 1] - x[0])² over the selected elements, to `out`, float64 [rows, models]."""
    sums = np.empty(LANES)
    for i in range(out.shape[1]):
        for r in range(out.shape[0]):
            sums[:] = 0.0
            for start in range(0, x.shape[2], LANES):
                model = x[i + 1, first + r, start : start + LANES]
                base = x[0, first + r, start : start + LANES]
                chosen = selected[r, start : start + LANES]
                for l in range(model.size):
                    d = np.float64(model[l] - base[l])
                    sums[l] += d * d if chosen[l] else 0.0
            out[r, i] = lane_total(sums)


@kernel
def add_elected(x, first, selected, weights, out):
    """out[first + r] = base + Σ weights[i] d[i] / Σ weights[i] over the models whose d has the sign of Σ d."""
    n = x.shape[2]
    votes, sums, divisors = np.empty(n), np.empty(n), np.empty(n)
    for r in range(selected.shape[0]):
        base, chosen, target = x[0, first + r], selected[r], out[first + r]
        votes[:] = 0.0
        sums[:] = 0.0
        divisors[:] = 0.0
        for i in range(weights.size):
            model = x[i + 1, first + r]
            for j in range(n):
                votes[j] += np.float64(model[j] - base[j])
        for i in range(weights.size):
            model, weight = x[i + 1, first + r], weights[i]
            for j in range(n):
                d = np.float64(model[j] - base[j])
                agrees = (d > 0.0) & (votes[j] >= 0.0) | (d < 0.0) & (votes[j] < 0.0)
                sums[j] += weight * d if agrees else 0.0
                divisors[j] += weight if agrees else 0.0
        for j in range(n):
            change = sums[j] / max(divisors[j], NO_DIVISOR)
            target[j] = np.float32(np.float64(base[j]) + (change if chosen[j] else 0.0))


METHODS = {"sce": Sce()}
